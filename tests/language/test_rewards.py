from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch

from limbeck.errors import DataError, RecipeError, RewardError, UnknownNameError
from limbeck.rewards import Judged, build_reward, judged_entries, rewards, score
from limbeck.rewards.numbers import final_answer, last_number, numbers_in, only_number


def worth(reward, completion, *, prompt="", trust=False, **record):
    return build_reward(reward, trust=trust)(Judged(prompt, completion, record, index=3, tokens=len(completion)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("+3", 3),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1\u202f234", 1234),
        (r"1{,}234", 1234),
        ("12,34", 34),  # no thousands: two numbers
        ("$18.50", Fraction(37, 2)),
        (r"\$18.50", Fraction(37, 2)),
        ("-$5", -5),
        ("3/4", Fraction(3, 4)),
        ("2 1/2", Fraction(5, 2)),
        (r"\frac{3}{8}", Fraction(3, 8)),
        (r"-\dfrac{ 1 }{ 3 }", Fraction(-1, 3)),
        ("50%", 50),
        (r"12.5\%", Fraction(25, 2)),
        ("1.5e3", 1500),
        (r"2 \times 10^{-3}", Fraction(1, 500)),
        (".5", Fraction(1, 2)),
        ("18 dollars", 18),
        ("5 apples.", 5),
        ("10-3", 3),  # subtracts: no sign
        ("10 - 3", 3),
        ("x-12", 12),
        ("it is -12", -12),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert last_number(text).value == value


@pytest.mark.parametrize("text", ["", "none", "1/0", r"\frac{1}{0}", "1e999999999"])
def test_what_is_no_number_is_none(text):
    assert last_number(text) is None


def test_every_number_that_python_writes_is_read_back():
    draw = random.Random(0)
    for _ in range(300):
        number = draw.choice([draw.randint(-(10**9), 10**9), draw.randint(-(10**6), 10**6) / 64])
        for text in (f"{number}", f"{number:,}", f"so it is {number}.", f"#### {number:,}"):
            assert last_number(final_answer(text)).value == Fraction(number), text


def test_the_final_answer_is_in_the_last_box_or_after_the_last_mark():
    assert final_answer(r"first \boxed{1}, then \boxed{\frac{1}{\sqrt{2}}} done") == r"\frac{1}{\sqrt{2}}"
    assert final_answer(r"a box that never closes: \boxed{12 #### 5") == "5"
    assert final_answer("#### 1\n#### 72\nand on") == "72"
    assert final_answer("<think>it is 3</think><answer> 4 </answer>") == "4"
    assert final_answer("The final answer is: 9") == "9"
    assert final_answer(" 8 ") == "8"
    assert final_answer("####") == ""


def test_only_a_plain_number_is_a_plain_number():
    assert only_number("190 sec").value == 190
    for text in ("x^2", r"\sqrt{2}", "3 or 4", "f(2)", "x = 2", ""):
        assert only_number(text) is None
    assert [n.value for n in numbers_in("3 + 4 = 7")] == [3, 4, 7]


@pytest.mark.parametrize(
    ("answer", "completion", "value"),
    [
        ("72", "She sold 48 + 24 = 72 clips.\n#### 72", 1),
        ("48/2 = 24\n#### 72", r"\boxed{72}", 1),
        ("1,000", "It makes 1000 in all", 1),
        ("0.5", "one half, that is 1/2", 1),
        ("50", "50%", 1),
        ("0.5", "50%", 1),
        ("72", "72 or rather 73", 0),
        ("72", r"72 \boxed{27}", 0),
        ("72", "", 0),
        ("72", "seventy-two", 0),
        ("72", "172", 0),
        ("-3", "3", 0),
        ("3", "-3", 0),
        ("0.333", "1/3", 0),
        ("5", "__import__('os').system('true')", 0),
    ],
)
def test_maths(answer, completion, value):
    assert worth("maths", completion, answer=answer) == value


def test_maths_within_a_tolerance_and_from_another_column():
    near = {"name": "maths", "tolerance": 0.01, "column": "solution"}
    assert worth(near, "0.3333", solution="1/3") == 1
    assert worth(near, "0.34", solution="1/3") == 0
    with pytest.raises(DataError, match="holds no number"):
        worth("maths", "4", answer="a lot")


@pytest.mark.parametrize(
    ("answer", "completion", "value"),
    [
        (r"(x+1)^2", r"\boxed{x^2 + 2x + 1}", 1),
        (r"2\sqrt{2}", r"the answer is \sqrt{8}", 1),
        (r"\sqrt{2}", r"\boxed{\sqrt{3}}", 0),
        ("1,200", r"\boxed{1200}", 1),
        (r"\sqrt{2}", "1" * 1000, 0),
        (r"\sqrt{2}", "__import__('os')", 0),
    ],
)
def test_expressions(answer, completion, value):
    assert worth({"name": "maths", "symbolic": True}, completion, answer=answer) == value


def test_exact_answer():
    assert worth("exact_answer", '  "Los  Angeles." ', answer="LOS ANGELES") == 1
    assert worth("exact_answer", "Answer: Paris\nBecause it is.", answer=["London", "paris"]) == 1
    assert worth("exact_answer", "Parish", answer="Paris") == 0
    assert worth("exact_answer", "", answer="") == 0
    assert worth({"name": "exact_answer", "case": True}, "paris", answer="Paris") == 0
    assert worth("exact_answer", "7", answer=7) == 1


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("B", 1),
        ("(B)", 1),
        ("The answer is (B) because 30 is right.", 1),
        ("30", 1),
        ("answer: 30.", 1),
        ("A", 0),
        ("300", 0),
        ("A or B", 0),
        ("F", 0),
        ("", 0),
        ("Because", 0),
    ],
)
@pytest.mark.parametrize("answer", ["30", "B", 1])
def test_multiple_choice(completion, value, answer):
    assert worth("multiple_choice", completion, answer=answer, choices=["3", "30", "300", "100.5", "201.2"]) == value


def test_multiple_choice_of_an_answer_that_is_none():
    with pytest.raises(DataError, match="none of the choices"):
        worth("multiple_choice", "A", answer="40", choices=["3", "30"])


def test_patterns_and_sections():
    assert worth({"name": "regex", "pattern": r"^\d+$"}, "12") == 1
    assert worth({"name": "regex", "pattern": r"\d", "whole": True}, "12") == 0
    grouped = {"name": "regex", "pattern": r"sum: (\d+)", "column": "answer"}
    assert worth(grouped, "the sum: 12", answer=12) == 1
    assert worth(grouped, "the sum: 13", answer=12) == 0
    assert worth("format", " <think>a\nb</think>\n<answer>4</answer> ") == 1
    for bad in (
        "<answer>4</answer>",
        "<think></think><answer>4</answer>",
        "<answer>4</answer><think>a</think>",
        "<think>a</think><answer>4</answer> more",
        "<think>a<think>b</think><answer>4</answer>",
        "<think>a</think><answer>4",
    ):
        assert worth("format", bad) == 0


def test_syntax_is_read_and_never_run(tmp_path):
    target = tmp_path / "made"
    program = f"open({str(target)!r}, 'w').write('x')"
    assert worth({"name": "syntax", "language": "python"}, f"Here:\n```python\n{program}\n```") == 1
    assert not target.exists()
    assert worth({"name": "syntax", "language": "python"}, "def f(:") == 0
    assert worth({"name": "syntax", "language": "python"}, "(" * 5000) == 0
    assert worth({"name": "syntax", "language": "json"}, '{"a": [1, 2]}') == 1
    assert worth({"name": "syntax", "language": "json"}, "[" * 9000) == 0
    assert worth({"name": "syntax", "language": "json"}, "") == 0


def test_length_falls_in_a_straight_line():
    penalty = build_reward({"name": "length", "free": 10, "limit": 20})
    values = [penalty(Judged("", "", tokens=n)) for n in (0, 10, 15, 20, 30)]
    assert values == [0, 0, -0.5, -1, -1]
    assert penalty(Judged("", "", tokens=3, finished=False)) == -1


def test_rewards_add_up():
    both = ["maths", {"name": "format", "weight": 0.25}]
    assert worth(both, "<think>a</think><answer>4</answer>", answer="4") == 1.25
    assert worth(both, "4", answer="4") == 1.0
    assert build_reward(both).columns == ("answer",)
    assert build_reward(both).name == "maths + format"


def starts_alike(prompt, completion, record):
    """A reward of a user."""
    return completion[:1] == prompt[:1]


def test_a_function_is_a_reward_and_by_name_only_with_trust():
    assert worth(starts_alike, "abc", prompt="alpha") == 1
    name = f"python:{__name__}:starts_alike"
    with pytest.raises(RecipeError, match="--trust"):
        build_reward(name)
    assert worth(name, "abc", prompt="alpha", trust=True) == 1
    with pytest.raises(UnknownNameError, match="cannot be imported"):
        build_reward(f"python:{__name__}:nothing", trust=True)
    with pytest.raises(RecipeError, match="--trust"):
        build_reward([{"name": name, "weight": 2.0}])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("math", "Did you mean 'maths'"),
        ({"name": "maths", "tolerence": 1}, "Did you mean 'tolerance'"),
        ({"name": "maths", "tolerance": -1}, "tolerance"),
        ({"name": "regex", "pattern": "("}, "no regular expression"),
        ({"name": "regex", "pattern": "a", "column": "answer"}, "no group"),
        ({"name": "length", "free": 5, "limit": 5}, "below limit"),
        ({"name": "format", "tags": []}, "at least one"),
        ({"weight": 1.0}, "written"),
        ({"name": "maths", "weight": 2.0}, "in a list"),
        ([{"name": "maths", "weight": "much"}], "is a number"),
        ([], "empty"),
        (7, "a function"),
    ],
)
def test_what_is_wrong_with_a_reward_is_said(given, said):
    with pytest.raises(RecipeError, match=said):
        build_reward(given)


def test_a_column_that_is_not_there_is_found_before_anything_is_sampled():
    records = [{"answer": "1"}, {"answr": "2"}]
    with pytest.raises(DataError, match=r"'answer', which sample 1 .*Did you mean 'answr'"):
        build_reward("maths").check(records)
    build_reward("format").check(records)


def broken(prompt, completion, record):
    if completion == "bad":
        raise KeyError("no such thing")
    return math.nan if completion == "odd" else 1.0


@pytest.mark.parametrize(("completion", "said"), [("bad", "KeyError"), ("odd", "nan")])
def test_a_reward_that_fails_names_itself_sample_and_completion(completion, said):
    samples = [Judged("p", "good", index=4), Judged("p", completion, index=9)]
    with pytest.raises(RewardError, match=rf"'broken' .*{said}.*Sample 9, completion '{completion}'"):
        score(build_reward(broken), samples)
    with pytest.warns(UserWarning, match="count as 0"):
        assert score(build_reward(broken), samples, on_error="zero") == [1.0, 0.0]


@pytest.mark.parametrize("value", ["much", None, [1.0, 2.0]])
def test_what_is_no_number_is_no_reward(value):
    with pytest.raises(RewardError, match="Sample 0"):
        score(build_reward(lambda *_: value), [Judged("", "a")])
    assert score(build_reward(lambda *_: torch.tensor(0.5)), [Judged("", "a")]) == [0.5]


def test_groups_keep_to_themselves():
    entries = judged_entries([1.0, 0.0, 0.0, 0.0, 2.0, 4.0], torch.tensor([5, 5, 1, 1, 0, 0]))
    root = 1 / math.sqrt(2)
    torch.testing.assert_close(
        entries["advantage"], torch.tensor([root, -root, 0.0, 0.0, -root, root]), atol=1e-5, rtol=0
    )
    assert entries["group_best"].tolist() == [1, 1, 0, 0, 4, 4]
    plain = judged_entries([1.0, 0.0], torch.tensor([0, 0]), advantage="none")
    assert plain["advantage"].tolist() == [1, 0]


def test_every_registered_reward_says_what_it_is():
    assert {"exact_answer", "maths", "multiple_choice", "regex", "format", "syntax", "length"} <= set(rewards)
    assert all(entry.about["title"] and entry.part.name == entry.name for entry in rewards.entries())
