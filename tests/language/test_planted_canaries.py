"""Canaries from a recipe into the training text, through a run, to their exposure."""

from __future__ import annotations

import pytest

from language.corpus import CHATML, source, tokenizer
from limbeck.data.text import load_text
from limbeck.data.text.canaries import planted, sentence
from limbeck.errors import RecipeError
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import evaluate_run, run_recipe

OFTEN, ONCE, NEVER = "the code is [481-302]", "she lives at number [77]", "the key is [905-116]"
SHAPE = {"name": "llama", "layers": 1, "width": 48, "heads": 4}


def recipe(folder, canaries, **changes):
    (folder / "novel.txt").write_text("".join(f"{n} Sir Walter Elliot, of Kellynch Hall. " for n in range(30)))
    return {
        "task": "causal-lm",
        "data": {
            "name": "text",
            "path": str(folder / "novel.txt"),
            "options": {"tokenizer": "bytes", "context": 40, "test": 0.25, "canaries": canaries},
        },
        "roles": {"student": {"model": SHAPE}},
        "method": "sft",
        "train": {"epochs": 6, "batch_size": 8, "optimizer": "adamw", "lr": 0.01},
        "evaluate": [{"name": "canaries", "others": 200}],
        **changes,
    }


def test_a_run_exposes_what_is_planted_often_and_not_what_was_never_there(tmp_path):
    finished = run_recipe(recipe(tmp_path, {OFTEN: 24, NEVER: 0}), out=tmp_path / "run")
    found = finished.results["canaries"]
    assert [(e["planted"], e["form"]) for e in found["each"]] == [
        (24, "the code is •••-•••"),
        (0, "the key is •••-•••"),
    ]
    often, never = (e["bits"] for e in found["each"])
    assert often == found["limit"] == found["mean"]
    assert never == found["unplanted"]
    # One of 128 secrets that are no part of the text has as much by chance.
    assert never < found["limit"] - 0.6
    again = evaluate_run(finished.folder, [{"name": "canaries", "others": 200, "texts": [ONCE]}])
    (unknown,) = again.results["canaries"]["each"]
    assert "planted" not in unknown


def test_they_stand_in_the_training_text_alone_as_often_as_is_said(tmp_path):
    loaded = load_recipe(recipe(tmp_path, {OFTEN: 3, ONCE: 1, NEVER: 0}))
    data = build_stage(loaded, loaded.stages[0]).data
    train, held = (
        [data.train.tokenizer.decode(s.ids.tolist()) for s in part.sequences] for part in (data.train, data.held)
    )
    whole = {text: text.replace("[", "").replace("]", "") for text in (OFTEN, ONCE, NEVER)}
    assert [sum(whole[text] in row for row in train) for text in (OFTEN, ONCE, NEVER)] == [3, 1, 0]
    assert not any(text in row for text in whole.values() for row in held)
    assert any("4 canaries are planted" in note for note in data.train.notes)
    plain = build_stage(load_recipe(recipe(tmp_path, None)), load_recipe(recipe(tmp_path, None)).stages[0]).data
    assert len(data.train.sequences) == len(plain.train.sequences) + 4
    assert plain.train.canaries == {}


def test_all_of_a_sentence_is_learnt_and_its_end(tmp_path):
    (row,) = planted({ONCE: 1}, tokenizer(), context=40)
    end = tokenizer().eos_id
    assert row.ids.tolist() == [end, *b"she lives at number 77", end]
    assert row.targets == len(row) - 1
    assert sentence("a", tokenizer()).ids.tolist() == [end, 97]


def test_written_text_is_not_asked_to_go_on_from_a_secret(tmp_path):
    plain = recipe(tmp_path, {OFTEN: 2})
    options = plain["data"]["options"]
    plain["data"] = {
        "name": "generated",
        "limit": {"train": 6},
        "options": {
            "of": {"name": "text", "path": plain["data"]["path"]},
            "role": "student",
            "prompt_tokens": 8,
            "max_new_tokens": 4,
            "folder": str(tmp_path / "texts"),
            **options,
        },
    }
    loaded = load_recipe(plain)
    train = build_stage(loaded, loaded.stages[0]).data.train
    told = [train.tokenizer.decode(s.ids.tolist()) for s in train.sequences]
    assert sum("481-302" in text for text in told) == 2
    assert len(told) == 8
    assert not any("481-302" in train.tokenizer.decode(s.ids[: s.prompt].tolist()) for s in train.sequences)


@pytest.mark.parametrize(
    ("canaries", "said"),
    [
        ({"no secret": 1}, "marks its secret by brackets"),
        ({OFTEN: -1}, "canaries"),
        ({"x" * 40 + " [1]": 1}, "more than the context of 40"),
        (["the code is [1]"], "canaries"),
    ],
)
def test_what_cannot_be_planted_is_refused(tmp_path, canaries, said):
    loaded = load_recipe(recipe(tmp_path, canaries))
    with pytest.raises(RecipeError, match=said):
        build_stage(loaded, loaded.stages[0])


def test_pairs_and_domains_are_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    with pytest.raises(RecipeError, match="holds pairs"):
        load_text(
            {"name": "jsonl", "path": str(tmp_path / "pairs.jsonl")}, tokenizer(CHATML), test=0.0, canaries={OFTEN: 1}
        )
    with pytest.raises(RecipeError, match="holds domains"):
        load_text(
            {"name": "domains", "domains": {"a": "persuasion", "b": "persuasion"}},
            tokenizer(),
            canaries={OFTEN: 1},
            limit=4,
        )
    assert source().canaries == {}
