from __future__ import annotations

import json

import pytest
import torch

from language.corpus import CHATML, tiny, tokenizer
from limbeck.data.text import Chat, Pair, Preference, TextLoader, load_text
from limbeck.data.text.pairs import as_preference, as_record
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import CacheError, DataError, NeedsError, RecipeError
from limbeck.methods.base import Setup, build_method
from limbeck.signals import as_term
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.cache.sequences import CachedSequences, write_sequences
from limbeck.teachers.live import FrozenTeacher

VIEWS = {"dckd": "rejected", "dpo": "rejected", "redi": "rejected", "adpa": "sampled", "distillm2": "generated"}
ROWS = [
    {"prompt": "Who? ", "chosen": "Anne Elliot", "rejected": "Nobody at all"},
    {"prompt": "Where is she? ", "chosen": "In Bath", "rejected": "At sea, with the fleet"},
    {"prompt": "When? ", "chosen": "In 1814", "rejected": "In 2014"},
    {"prompt": "Why? ", "chosen": "Persuasion", "rejected": "Money"},
]


def file(path, rows, name="pairs.jsonl"):
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "path": str(path / name)}


def source(path, rows=ROWS, *, template="", **options):
    return load_text(file(path, rows), tokenizer(template), **{"context": 48, "test": 0.0, **options})


def batches(path, view="rejected", *, batch_size=4, **options):
    return TextLoader(source(path), batch_size=batch_size, shuffle=False, views=[view], **options).epoch(0)


def words(ids, mask):
    return tokenizer().decode(ids[mask].tolist(), special=True)


def test_text_conversations_and_their_mixtures_say_the_same_pair():
    turns = (("user", "Hi"),)
    ask, good, bad = [{"role": "user", "content": "Hi"}], {"role": "assistant", "content": "A"}, "B"
    plain = as_preference({"prompt": "Hi", "chosen": "A", "rejected": "B"}, "here")
    assert plain == Preference(Pair("Hi", "A"), Pair("Hi", "B"))
    pair = Preference(*(Chat((*turns, ("assistant", side)), learn_from=1) for side in "AB"))
    wrong = {"role": "assistant", "content": bad}
    for record in (
        {"messages": ask, "chosen": "A", "rejected": "B"},
        {"prompt": ask, "chosen": [good], "rejected": [wrong]},
        {"prompt": "Hi", "chosen": [*ask, good], "rejected": [*ask, wrong]},
        {"prompt": "Hi", "chosen": [good], "rejected": [wrong]},
        {"chosen": [*ask, good], "rejected": [*ask, wrong]},
    ):
        assert as_record(record, "here") == pair
    longer = [good, {"role": "user", "content": "More"}]
    found = as_preference({"prompt": "Hi", "chosen": [*ask, *longer, good], "rejected": [*ask, *longer, wrong]}, "here")
    assert found.chosen.learn_from == 3
    assert as_record({"text": "x"}, "here").text == "x"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 2 of pairs.jsonl has 'chosen' but no 'rejected'"),
        ({"prompt": "a", "rejected": "b", "chosen": None}, "line 2 of pairs.jsonl has 'rejected' but no 'chosen'"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "line 2 of pairs.jsonl: the chosen is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "line 2 of pairs.jsonl: the rejected is empty"),
        ({"chosen": "a", "rejected": "b"}, "line 2 of pairs.jsonl has two answers but no 'prompt'"),
        ({"prompt": "a", "chosen": "b", "rejected": 7}, "'chosen' should be a list"),
        ({"chosen": [{"role": "user", "content": "x"}], "rejected": "y"}, "no message comes from the assistant"),
        ({"prompt": "a", "completion": "b"}, "mixes pairs of answers with other rows: number 0 is a pair, number 1"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_its_number(tmp_path, record, said):
    with pytest.raises(DataError, match=said):
        source(tmp_path, [ROWS[0], record])


@pytest.mark.parametrize(("name", "view"), VIEWS.items())
def test_batches_have_exactly_what_each_method_reads(tmp_path, name, view):
    method = build_method(name)
    assert method.needs.views == (view,)
    batch = next(batches(tmp_path, view))
    assert method.needs.batch <= batch.keys()
    for row, said in enumerate(ROWS):
        assert words(batch["labels"][row], batch["mask"][row]) == said["chosen"] + "<|end|>"
        assert words(batch[f"{view}_labels"][row], batch[f"{view}_mask"][row]) == said["rejected"] + "<|end|>"
        inputs = batch["views"][view]
        seen = words(inputs["input_ids"][row], inputs["attention_mask"][row].bool())
        assert seen == said["prompt"] + said["rejected"]
    assert torch.equal(batch[f"{view}_mask"], batch[f"{view}_labels"] != -100)
    signals = {role: _signals(batch, role, method) for role in method.roles()}
    method.build(Setup(signals, {}, batch=batch))
    for value in method(batch, **signals).values():
        assert torch.isfinite(as_term(value).values).all()


def _signals(batch, role, method):
    seeds = {"student": 1, "teacher": 2, "reference": 3}
    wanted = method.needs.roles[role]
    return FrozenTeacher(role, tiny(seeds[role]), CausalLM(), views=method.needs.views, wanted=wanted)(batch)


def test_both_answers_stay_together_in_micro_batches_and_ranks(tmp_path):
    whole = next(batches(tmp_path))
    parts = [*whole.split(3), *(next(batches(tmp_path, rank=rank, world_size=2)) for rank in (0, 1))]
    for part in parts:
        for row, number in enumerate(part["index"].tolist()):
            assert words(part["labels"][row], part["mask"][row]).startswith(ROWS[number]["chosen"])
            assert words(part["rejected_labels"][row], part["rejected_mask"][row]).startswith(ROWS[number]["rejected"])
            assert part["views"]["rejected"]["input_ids"].shape == part["rejected_labels"].shape


def test_a_method_without_pairs_learns_the_preferred_answer(tmp_path):
    batch = next(TextLoader(source(tmp_path), batch_size=4, shuffle=False).epoch(0))
    assert "views" not in batch
    assert words(batch["labels"][0], batch["mask"][0]) == "Anne Elliot<|end|>"


def test_of_a_conversation_the_prompt_is_not_learnt(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = {"messages": [*turns, {"role": "user", "content": "Who?"}], "chosen": "Anne", "rejected": "Bob"}
    marked = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "<|end|>{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    for template, end in ((CHATML, "<|im_end|>"), (marked, "<|end|>")):
        found = source(tmp_path, [row], template=template, context=256)
        sides = (found.sequences[0], found.rejected[0])
        assert [words(s.ids, s.learn) for s in sides] == [f"Anne{end}", f"Bob{end}"]
        assert sides[0].prompt == sides[1].prompt


def test_long_and_equal_pairs_go_as_one_and_are_told(tmp_path):
    long = {"prompt": "Long? ", "chosen": "yes", "rejected": "no" * 40}
    drowned = {"prompt": "?" * 60, "chosen": "yes", "rejected": "no"}
    equal = {"prompt": "Same? ", "chosen": "yes", "rejected": "yes"}
    late = {"prompt": "Late? ", "chosen": "a" * 60 + "b", "rejected": "a" * 60 + "c"}
    rows = [*ROWS, long, drowned, equal, late]
    cut = source(tmp_path, rows)
    assert len(cut) == 5
    assert len(cut.rejected) == 5
    assert max(map(len, cut.rejected)) == 49
    assert cut.notes == (
        "3 of 8 pairs of 'pairs.jsonl' cut to 48 tokens",
        "1 pairs of 'pairs.jsonl' have a side without a token to predict and are left out (numbers 5...)",
        "2 pairs of 'pairs.jsonl' have equal sides and are left out (numbers 6, 7...)",
    )
    assert len(source(tmp_path, rows, too_long="drop")) == 4
    with pytest.raises(DataError, match=r"3 pairs of 'pairs.jsonl' \(the first is number 4\)"):
        source(tmp_path, rows, too_long="error")
    with pytest.raises(DataError, match=r"no pair of 'pairs.jsonl' has two different answers"):
        source(tmp_path, [equal])
    with pytest.raises(RecipeError, match="not packed"):
        source(tmp_path, packed=True)


def test_pairs_with_one_prompt_are_on_one_side_of_a_split(tmp_path):
    rows = [{"prompt": f"Question {n // 4}: ", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(160)]
    train, test = (source(tmp_path, rows, test=0.3, split=split) for split in ("train", "test"))
    prompts = [{tokenizer().decode(s.ids[: s.prompt].tolist()) for s in part.sequences} for part in (train, test)]
    assert len(train) + len(test) == 160
    assert not prompts[0] & prompts[1]
    assert len(source(tmp_path, rows, limit=5).rejected) == 5
    changed = [{**rows[0], "rejected": "other"}, *rows[1:]]
    assert source(tmp_path, changed).fingerprint() != source(tmp_path, rows).fingerprint()


@pytest.mark.parametrize("name", ["dckd", "dpo", "redi", "adpa"])
def test_gradients_are_those_of_one_batch_for_every_split_row_2(tmp_path, name):
    """Both sides have equal masks in the first half alone: each keeps its own count over the whole batch."""
    rows = [
        {"prompt": "a", "chosen": "bcd", "rejected": "efg"},
        {"prompt": "h", "chosen": "ijk", "rejected": "lmn"},
        {"prompt": "o", "chosen": "p", "rejected": "qrstuvw"},
        {"prompt": "x", "chosen": "yz", "rejected": "0123456789"},
    ]
    found = []
    for parts in (1, 2, 4):
        student = tiny(1)
        roles = {"teacher": Role(model=tiny(2)), "reference": Role(model=tiny(3)), "student": Role(model=student)}
        method = build_method(name)
        stage = Stage(
            method=method,
            roles={role: roles[role] for role in method.roles()},
            task=CausalLM(),
            loader=TextLoader(source(tmp_path, rows), batch_size=4, shuffle=False, views=method.needs.views),
            settings=TrainSettings(epochs=1, batch_size=4, optimizer="sgd", lr=1e-9, momentum=0.0, micro_batches=parts),
        )
        stage.rehearse(stage.first_batch())
        found.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_a_cache_holds_both_answers(tmp_path):
    method, data = build_method("dckd"), source(tmp_path)
    loader = TextLoader(data, batch_size=4, shuffle=False, views=["rejected"])
    teacher = FrozenTeacher("teacher", tiny(2), CausalLM(), views=["rejected"], wanted=frozenset({"hidden|logits"}))
    write_sequences(tmp_path / "cache", source=data, teacher=teacher, codec={"name": "full", "dtype": "float32"})
    cached = CachedSequences(tmp_path / "cache", loader)
    batch = next(loader.epoch(0))
    student = _signals(batch, "student", method)
    live, stored = (method(batch, student=student, teacher=t(batch)) for t in (teacher, cached))
    for term in live:
        torch.testing.assert_close(as_term(stored[term]).mean(), as_term(live[term]).mean(), rtol=1e-4, atol=1e-5)
    other = [*ROWS[:3], {**ROWS[3], "rejected": "Pride"}]
    with pytest.raises(CacheError, match=r"lacks 1 of the 4 .*'Why\? Pride"):
        CachedSequences(tmp_path / "cache", TextLoader(source(tmp_path, other), batch_size=4, views=["rejected"]))


def test_text_without_pairs_is_refused_with_the_way_out(tmp_path):
    plain = load_text(file(tmp_path, [{"text": "abc"}]), tokenizer(), context=8, test=0.0)
    with pytest.raises(NeedsError, match=r"further view 'rejected'.*of text give pairs of answers"):
        Stage(
            method=build_method("redi"),
            roles={"student": Role(model=tiny())},
            task=CausalLM(),
            loader=TextLoader(plain, batch_size=1, views=["rejected"]),
            settings=TrainSettings(epochs=1, batch_size=1),
        )
