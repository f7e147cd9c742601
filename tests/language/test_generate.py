from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from language.corpus import CHATML, tiny, tokenizer
from limbeck.cli import app
from limbeck.data.text import Chat, Pair, encode_example
from limbeck.data.text.examples import as_example
from limbeck.errors import CacheError, DataError, NeedsError, RecipeError
from limbeck.generation import Sampling
from limbeck.generation.answers import Lines, prompt_of, sorted_out
from limbeck.generation.model_writer import ModelWriter
from limbeck.generation.written import Completion, Parts, owned, write_parts
from limbeck.recipes.build import build_stage
from limbeck.recipes.check import check_recipe
from limbeck.recipes.generate import generate_recipe
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.rewards import build_reward
from limbeck.teachers.server import Scorer, TeacherServer

SHAPE = {"name": "llama", "layers": 2, "width": 32, "heads": 4}


def novel(folder):
    """A short text, as data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "novel.txt").write_text("".join(f"{n} Sir Walter Elliot, of Kellynch Hall. " for n in range(40)))
    return {"name": "text", "path": str(folder / "novel.txt"), "test": 0.25}


def recipe(folder, *, of=None, method="seq_kd", roles=None, limit=None, **options):
    """A recipe whose training text is written by its roles."""
    own = {key: value for key, value in novel(folder).items() if key != "test"}
    return {
        "task": "causal-lm",
        "data": {
            "name": "generated",
            "limit": limit or {"train": 12, "test": 4},
            "options": {
                "of": of or own, "tokenizer": "bytes", "context": 40, "folder": str(folder / "texts"), "test": 0.25,
                "max_new_tokens": 12, **({} if of else {"prompt_tokens": 16}), **options,
            },
        },
        "roles": {
            "teacher": {"model": SHAPE}, "student": {"from": "teacher", "layers": 1}, **(roles or {}),
        },
        "method": method,
        "train": {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "lr": 0.003},
        "evaluate": ["token_loss"],
    }  # fmt: skip


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def sums(**options):
    return {"name": "arithmetic", **options}


class Copyist:
    """Writes each prompt's number, and counts what it was asked."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def write(self, prompts, numbers):
        if self.fail_at in numbers:
            raise KeyboardInterrupt
        self.asked += list(numbers)
        return [[Completion(f"{p.prompt}{n}", True, 1)] for p, n in zip(prompts, numbers)]


def test_what_was_written_before_a_kill_is_not_written_again_and_a_damaged_part_is(tmp_path):
    prompts = [Pair(f"p{n} ", "x") for n in range(10)]
    parts = Parts(tmp_path, {"writer": "w"}, prompts=10, size=3)
    first, second = Copyist(fail_at=7), Copyist()
    with pytest.raises(KeyboardInterrupt):
        write_parts(parts, prompts, first)
    write_parts(Parts(tmp_path, {"writer": "w"}, prompts=10, size=3), prompts, second)
    assert first.asked + second.asked == list(range(10))
    assert [group[0].text for group in parts.completions()] == [f"p{n} {n}" for n in range(10)]
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    damaged = tmp_path / "000001.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"p4", b"p5"))
    third, seen = Copyist(), []
    write_parts(parts, prompts, third, progress=lambda *said: seen.append(said))
    assert third.asked == [3, 4, 5]
    assert seen == [(7, 10), (10, 10)]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == whole
    with pytest.raises(CacheError, match="another 'writer': w, and now it is v"):
        Parts(tmp_path, {"writer": "v"}, prompts=10, size=3)


def test_answers_may_hold_any_character(tmp_path):
    parts, odd = Parts(tmp_path, {}, prompts=1, size=2), 'a\u2028b\x85c\x1d\r\n"d" é \U0001f642'
    parts.store(0, [[Completion(odd, True, 3)]])
    assert [group[0].text for group in parts.completions()] == [odd]


def test_processes_share_the_parts(tmp_path):
    prompts = [Pair(f"p{n}", "x") for n in range(10)]
    both = [Copyist(), Copyist()]
    parts = [Parts(tmp_path, {}, prompts=10, size=2) for _ in both]
    for rank in (1, 0):
        # The other process has written nothing yet when this one looks.
        write_parts(parts[rank], prompts, both[rank], share=(rank, 2 if rank else 1))
    assert sorted(both[0].asked + both[1].asked) == list(range(10))
    assert both[1].asked == [2, 3, 6, 7]


@pytest.mark.parametrize("rows", [3, 7])
def test_a_model_writes_the_same_however_prompts_are_divided(rows):
    prompts = [Pair("abcdefg"[: 1 + n % 5], "x") for n in range(9)]
    sampling = Sampling(max_new_tokens=6)
    writer = ModelWriter(tiny(3), tokenizer(), sampling, context=30, samples=2, seed=4, rows=rows)
    whole = ModelWriter(tiny(3), tokenizer(), sampling, context=30, samples=2, seed=4)
    assert writer.write(prompts, range(9)) == whole.write(prompts, range(9))
    assert writer.write(prompts[5:], range(5, 9)) == whole.write(prompts, range(9))[5:]
    first = whole.write(prompts, range(9))[0]
    assert first[0] != first[1]
    assert all(answer.tokens <= 6 for answer in first)


def test_the_prompt_that_a_teacher_sees_is_the_one_that_the_student_learns_after():
    tokens = tokenizer(CHATML)
    chat = Chat((("user", "Hi"), ("assistant", "Hello"), ("user", "More"), ("assistant", "No")))
    writer = ModelWriter(tiny(), tokens, Sampling(), context=400)
    for example in (chat, Pair("ab ", "cd")):
        encoded = encode_example(example, tokens)
        assert writer._ids(example, 0) == encoded.ids[: encoded.prompt].tolist()
    with pytest.raises(DataError, match="leaves no room"):
        ModelWriter(tiny(), tokens, Sampling(), context=4).write([Pair("abcd", "x")], [7])


def test_lines_are_read_back_as_they_were_written():
    made = Lines(keep_cut_off=True)
    pair = Pair("2+2=", "4", {"prompt": "2+2=", "completion": "4", "answer": "4"})
    chat = Chat((("user", "Hi"), ("assistant", "Hello")), record={"messages": [], "source": "me"})
    cut = Completion("cut o", False, 3)
    made.add(pair, made.usable(pair, [Completion("5", True, 1), cut, Completion(" ", True, 1)]))
    made.add(chat, made.usable(chat, [Completion("Ho", True, 1), cut]))
    made.add_pairs(pair, [Completion("4", True, 1), Completion("5", True, 1)], [cut, Completion("5", True, 1)])
    found = [json.loads(line) for line in made.lines]
    assert found[0] == {"prompt": "2+2=", "completion": "5", "answer": "4"}
    read = [as_example(line, "here") for line in found[:3]]
    assert [e.ended for e in read[:2]] == [True, False]
    assert read[2].messages == (("user", "Hi"), ("assistant", "Ho"))
    assert found[2]["source"] == "me"
    assert found[3]["rejected_ended"] is False
    assert made.left_out == {"empty": 1, "cut off": 1, "equal": 1, "without a counterpart": 0}
    tokens = tokenizer()
    assert encode_example(read[0], tokens).ids[-1] == tokens.eos_id
    assert encode_example(read[1], tokens).ids[-1] == ord("o")


def test_prompts_of_running_text_are_its_first_tokens_and_have_to_be_asked_for():
    tokens = tokenizer()
    sequence = encode_example(as_example({"text": "abcdef"}, "here"), tokens)
    assert prompt_of(sequence, tokens, 0, 2) == Pair("ab", "cdef")
    assert not prompt_of(sequence.cut(5), tokens, 0, 2).ended
    with pytest.raises(DataError, match=r"sample 3 is running text without a prompt.*prompt_tokens"):
        prompt_of(sequence, tokens, 3)


def test_a_reward_tells_right_answers_from_wrong_ones():
    prompts = [Pair("2+2=", "4", {"answer": "4"}), Pair("3+3=", "6", {"answer": "6"})]
    answers = [[Completion(text, True, 1) for text in group] for group in (("4", "5", "four"), ("7", "66", "6"))]
    reward = build_reward("maths")
    right, wrong = (sorted_out(reward, prompts, answers, right=flag) for flag in (True, False))
    assert [[a.text for a in group] for group in right] == [["4"], ["6"]]
    assert [[a.text for a in group] for group in wrong] == [["5", "four"], ["7", "66"]]
    with pytest.raises(DataError, match="reads the column 'answer'"):
        sorted_out(reward, [Pair("x", "y")], [[]], right=True)


def test_seqkd_is_one_command_and_the_teacher_writes_once(tmp_path):
    data = recipe(tmp_path)
    finished = run_recipe(data, out=tmp_path / "run")
    (path,) = (tmp_path / "texts").glob("*.jsonl")
    written = lines(path)
    assert len(written) == 12
    assert all(len(line["prompt"]) == 16 for line in written)
    assert finished.results["token_loss"]["tokens"] == 160
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["lines"] == 12
    assert about["writers"]["teacher"]["tokenizer"] == tokenizer().fingerprint
    before = path.stat().st_mtime_ns
    run_recipe({**data, "train": {**data["train"], "lr": 0.001}}, out=tmp_path / "again")
    assert path.stat().st_mtime_ns == before
    changed = {**data, "data": {**data["data"], "options": {**data["data"]["options"], "temperature": 0.5}}}
    run_recipe(changed, out=tmp_path / "other")
    assert len(list((tmp_path / "texts").glob("*.jsonl"))) == 2


def test_the_student_learns_what_the_teacher_wrote_and_is_judged_on_the_data(tmp_path):
    loaded = load_recipe(recipe(tmp_path))
    data = build_stage(loaded, loaded.stages[0]).data
    plain = {**recipe(tmp_path)["data"]["options"], "of": None}
    options = {**{key: plain[key] for key in ("tokenizer", "context", "test")}, "path": novel(tmp_path)["path"]}
    base = {**recipe(tmp_path), "data": {"name": "text", "limit": {"train": 12, "test": 4}, "options": options}}
    other = load_recipe({**base, "method": "sft"})
    judged = build_stage(other, other.stages[0]).data
    assert data.held.fingerprint() == judged.held.fingerprint()
    own = {bytes(s.ids[:16].tolist()) for s in data.train.sequences}
    assert own <= {bytes(s.ids[:16].tolist()) for s in judged.train.sequences}
    assert data.train.fingerprint() != judged.train.fingerprint()
    assert any("written by teacher" in note for note in data.train.notes)


def test_check_writes_a_few_lines_and_keeps_none(tmp_path):
    found = check_recipe(recipe(tmp_path, limit={"train": 30, "test": 4}))
    (rows,) = found.tables.values()
    assert any("written by teacher: 8 lines" in value for _, value in rows)
    assert not (tmp_path / "texts").exists()


@pytest.mark.parametrize("method", ["dckd", "adpa", "distillm2", "redi"])
def test_pairs_of_what_teacher_and_student_write_train_every_method_that_reads_pairs(tmp_path, method):
    roles = {"reference": {"model": {**SHAPE, "layers": 1}}}
    run_recipe(
        recipe(tmp_path, method=method, roles=roles, chosen="teacher", rejected="student", temperature=1.5),
        out=tmp_path / "run",
    )
    (path,) = (tmp_path / "texts").glob("*.jsonl")
    for line in lines(path):
        assert line["chosen"] != line["rejected"]
    assert "terms" in json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


def test_right_and_wrong_traces_of_one_role_become_pairs(tmp_path):
    """The teacher knows no sums, so its own answers are wrong and the data's are right."""
    data = recipe(tmp_path, of=sums(), method="redi", chosen="data", rejected="teacher", reward="maths", cut_off="keep")
    run_recipe(data, out=tmp_path / "run")
    (path,) = (tmp_path / "texts").glob("*.jsonl")
    for line in lines(path):
        assert line["chosen"] == line["answer"]
        assert not build_reward("maths")(_judged(line))
    both = recipe(tmp_path, of=sums(), method="redi", chosen="teacher", rejected="teacher")
    with pytest.raises(RecipeError, match="a reward has to tell them apart"):
        run_recipe(both, out=tmp_path / "both")


def _judged(line):
    from limbeck.rewards import Judged

    return Judged(line["prompt"], line["rejected"], line)


def test_the_command_writes_goes_on_and_refuses_another_text(tmp_path):
    file = tmp_path / "sums.yaml"
    data = recipe(tmp_path)
    data["data"] = {"name": "arithmetic", "limit": {"train": 6, "test": 2}, "options": {"tokenizer": "bytes"}}
    file.write_text(json.dumps(data))
    call = ["generate", str(file), "--out", str(tmp_path / "out.jsonl"), "--folder", str(tmp_path / "texts")]
    call += ["--max-new-tokens", "5", "--samples", "2"]
    runner = CliRunner()
    # An untrained model ends nothing by itself, and what is cut off is left out.
    first = runner.invoke(app, call)
    assert isinstance(first.exception, DataError), first.output
    assert "raise max_new_tokens" in str(first.exception)
    kept = [*call, "data.options.cut_off=keep"]
    data["data"] = {"name": "generated", "limit": data["data"]["limit"], "options": {
        "of": "arithmetic", "tokenizer": "bytes", "cut_off": "keep"}}  # fmt: skip
    file.write_text(json.dumps(data))
    done = runner.invoke(app, call, catch_exceptions=False)
    assert "12 lines" in done.output
    before = (tmp_path / "out.jsonl").read_bytes()
    assert "12 lines" in runner.invoke(app, call, catch_exceptions=False).output
    assert (tmp_path / "out.jsonl").read_bytes() == before
    other = runner.invoke(app, [*call, "--temperature", "0.5"])
    assert isinstance(other.exception, CacheError)
    assert "was written with another 'writers'" in str(other.exception)
    (tmp_path / "mine.jsonl").write_text("{}")
    mine = runner.invoke(app, [*kept[:2], "--out", str(tmp_path / "mine.jsonl"), "--folder", str(tmp_path / "texts")])
    assert "not by limbeck's hand" in str(mine.exception)


def test_a_server_writes_and_is_asked_once(tmp_path):
    roles = {
        "teacher": {"remote": {"url": "URL", "model": "tiny", "journal": str(tmp_path / "journal")}},
        "student": {"model": SHAPE},
    }
    with TeacherServer(Scorer(tiny(2, context=128), tokenizer()), "tiny") as server:
        roles["teacher"]["remote"]["url"] = server.url
        data = recipe(tmp_path, of=sums(), roles=roles, cut_off="keep", temperature=0.7)
        found = generate_recipe(data, out=tmp_path / "a.jsonl")
        journal = (tmp_path / "journal" / "answers.jsonl").read_bytes()
        again = {
            **data,
            "data": {**data["data"], "options": {**data["data"]["options"], "folder": str(tmp_path / "b")}},
        }
        generate_recipe(again, out=tmp_path / "b.jsonl")
    assert (tmp_path / "journal" / "answers.jsonl").read_bytes() == journal
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert found.lines == len(journal.splitlines())
    run_recipe(data, out=tmp_path / "run")


class Slow(Copyist):
    """Takes a while."""

    def write(self, prompts, numbers):
        time.sleep(0.1)
        return super().write(prompts, numbers)


def test_a_killed_process_leaves_whole_parts_and_gives_the_folder_free_row_43(tmp_path):
    prompts = [Pair(f"p{n} ", "x") for n in range(20)]

    def write(writer):
        with owned(tmp_path):
            write_parts(Parts(tmp_path, {}, prompts=20, size=2), prompts, writer)

    child = os.fork()
    if not child:
        write(Slow())
        os._exit(0)
    while len(list(tmp_path.glob("0*.jsonl"))) < 3:
        time.sleep(0.01)
    with pytest.raises(CacheError, match="another process writes into"), owned(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("0*.jsonl")}
    assert 3 <= len(kept) < 10
    second = Copyist()
    write(second)
    assert second.asked == list(range(2 * len(kept), 20))
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    parts = Parts(tmp_path, {}, prompts=20, size=2)
    assert [group[0].text for group in parts.completions()] == [f"p{n} {n}" for n in range(20)]


def test_a_later_stage_writes_with_what_the_stage_before_has_left(tmp_path):
    stages = recipe(tmp_path, chosen="teacher", rejected="student", temperature=1.5)
    roles = {"teacher": {"model": SHAPE}, "student": {"model": {**SHAPE, "layers": 1}}}
    own = {"tokenizer": "bytes", "context": 40, "test": 0.25, "path": novel(tmp_path)["path"]}
    plain = {"name": "text", "limit": {"train": 16, "test": 4}, "options": own}
    settings = {**stages["train"], "lr": 0.01}
    shared = {"task": "causal-lm", "roles": roles, "evaluate": ["token_loss"]}
    data = {
        **shared,
        "stages": [
            {"name": "first", "data": plain, "method": "sft", "train": settings},
            {"name": "second", "data": stages["data"], "method": "distillm2", "train": settings},
        ],
    }
    run_recipe(data, out=tmp_path / "run")
    (path,) = (tmp_path / "texts").glob("*.jsonl.json")
    writer = json.loads(path.read_text())["writers"]["student"]["writer"]
    from limbeck.students.loading import load_weights
    from limbeck.teachers.fingerprint import fingerprint

    model = build_stage(load_recipe(data), load_recipe(data).stages[0]).roles["student"].model
    assert fingerprint(model) != writer
    load_weights(model, tmp_path / "run" / "stages" / "first" / "student.safetensors")
    assert fingerprint(model) == writer


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"role": "techer"}, RecipeError, "no role 'techer' that could write"),
        ({"chosen": "teacher"}, RecipeError, "both `chosen` and `rejected`"),
        ({"of": {"path": "x"}}, RecipeError, "names other text data"),
        ({"samples": 2, "greedy": True}, RecipeError, "all the same"),
        ({"rol": "teacher"}, RecipeError, "unknown key 'rol'"),
        ({"prompt_tokens": None}, DataError, "running text without a prompt"),
        ({"temperature": 0}, RecipeError, "temperature"),
    ],
)
def test_mistakes_are_named_with_the_fix(tmp_path, options, error, said):
    data = recipe(tmp_path)
    data["data"]["options"] |= options
    with pytest.raises(error, match=said):
        run_recipe(data, out=tmp_path / "run")


def test_methods_that_read_pairs_say_what_is_missing(tmp_path):
    with pytest.raises(NeedsError, match="pairs of answers"):
        run_recipe(recipe(tmp_path, method="redi"), out=tmp_path / "run")
