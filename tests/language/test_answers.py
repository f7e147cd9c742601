"""Data whose answers can be checked: its columns travel with the sequences, and generated sums are right."""

from __future__ import annotations

import json

import pytest

from language.corpus import CHATML, tokenizer
from limbeck.data.text import TextLoader, load_text
from limbeck.errors import RecipeError
from limbeck.rewards import Judged, build_reward
from limbeck.rewards.numbers import numbers_in


def test_columns_of_a_line_are_found_by_the_index_of_a_batch(tmp_path):
    lines = [
        {"question": f"{n}+1=", "completion": f"{n + 1}", "answer": n + 1, "source": {"page": n}} for n in range(40)
    ]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    options = {"name": "jsonl", "path": str(file), "columns": {"prompt": "question"}}
    source = load_text(options, tokenizer(), context=8, test=0.25)
    batch = next(TextLoader(source, batch_size=8, seed=3).epoch(1))
    for index, ids in zip(batch["index"].tolist(), batch["inputs"]["input_ids"].tolist()):
        record = source.records[index]
        assert source.tokenizer.decode(ids).startswith(record["prompt"])
        assert record["answer"] == int(record["prompt"].split("+")[0]) + 1 == record["source"]["page"] + 1


def test_a_long_pair_and_a_conversation_keep_their_columns(tmp_path):
    file = tmp_path / "turns.jsonl"
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4" * 90}]
    file.write_text(json.dumps({"messages": turns, "answer": "4"}))
    source = load_text({"name": "jsonl", "path": str(file)}, tokenizer(CHATML), context=80, test=0.0)
    assert source.notes
    assert source.records[0]["answer"] == "4"


@pytest.mark.parametrize("worked", [False, True])
def test_generated_sums_are_right(worked):
    options = {"name": "arithmetic", "largest": 30, "operations": ["+", "-", "*"], "worked": worked}
    source = load_text(options, tokenizer(), context=64, test=0.0)
    assert len(source) == 3 * 31 * 31 == len({record["prompt"] for record in source.records})
    maths = build_reward("maths")
    for record in source.records:
        sums = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
        sign = next(s for s in sums if s in record["prompt"])
        first, second = map(int, record["prompt"].strip("=").split(sign))
        assert int(record["answer"]) == sums[sign](first, second)
        assert maths(Judged(record["prompt"], record["completion"], record)) == 1
        # Every step of the solution is right, and the last one ends in the answer.
        for step in record["solution"].split(", "):
            left, right = step.split("=")
            cut = left.index(sign if sign in left[1:] else "+", 1)
            assert sums[left[cut]](int(left[:cut]), int(left[cut + 1 :])) == int(right)
        assert int(right) == int(record["answer"])
        assert numbers_in(record["answer"])


def test_sums_are_drawn_once_each_in_the_order_of_their_seed():
    def prompts(**options):
        source = load_text({"name": "arithmetic", **options}, tokenizer(), context=16, test=0.0)
        return [record["prompt"] for record in source.records]

    assert len(prompts()) == 100
    assert len(prompts(count=7)) == 7
    assert prompts(seed=1) != prompts(seed=2)
    assert sorted(prompts(seed=1)) == sorted(prompts(seed=2))
    with pytest.raises(RecipeError, match="operations"):
        prompts(operations=[])
    with pytest.raises(RecipeError, match="operations"):
        prompts(operations=["/"])
