"""Fewer tokens: the text is divided as before, what is kept says the same, anything can still be written."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.corpus import CHATML, tiny
from language.tokenizers_made import WORDS, byte_level, ours, saved, sentencepiece_bpe, unigram
from limbeck.data.text.trimming import trim_tokenizer
from limbeck.errors import DataError, RecipeError
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import reopen, run_recipe
from limbeck.students.language import trim_embeddings

MADE = {"byte_level": byte_level, "sentencepiece_bpe": sentencepiece_bpe, "unigram": unigram}
SEEN = "a good man must be in want of a wife, so well considered"
_WHOLE = {kind: ours(make()) for kind, make in MADE.items()}


def counted(tokenizer, *texts):
    ids = np.concatenate([tokenizer.encode(text) for text in texts]).astype(np.int64)
    return np.bincount(ids, minlength=tokenizer.vocabulary)


@pytest.mark.parametrize("kind", MADE)
def test_the_text_is_divided_as_before_by_fewer_tokens(kind):
    whole = _WHOLE[kind]
    small = trim_tokenizer(whole, counted(whole, SEEN))
    kept = np.array(small.kept)
    assert small.vocabulary == len(kept) < whole.vocabulary
    assert small.origin is whole
    assert kept[small.encode(SEEN)].tolist() == whole.encode(SEEN)
    assert small.fingerprint != whole.fingerprint
    names, old = small.backend.get_vocab(), whole.backend.get_vocab()
    assert all(kept[number] == old[token] for token, number in names.items())


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30), seen=st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=8))
def test_any_text_can_still_be_written_and_what_was_seen_is_written_alike(kind, text, seen):
    whole = _WHOLE[kind]
    sentence = " ".join(seen)
    small = trim_tokenizer(whole, counted(whole, sentence))
    assert np.array(small.kept)[small.encode(sentence)].tolist() == whole.encode(sentence)
    unknown = small.backend.unk_token_id
    assert unknown is None or unknown not in small.encode(text)
    assert small.decode(small.encode(text)) == whole.decode(whole.encode(text))


@pytest.mark.parametrize("kind", MADE)
def test_plain_transformers_loads_it_with_its_special_tokens_template_and_processor(kind, tmp_path):
    from transformers import AutoTokenizer

    whole = ours(MADE[kind]())
    whole.backend.chat_template = CHATML
    small = trim_tokenizer(whole, counted(whole, SEEN))
    again = AutoTokenizer.from_pretrained(saved(small.backend, tmp_path))
    chat = [{"role": "user", "content": SEEN}]
    assert again.apply_chat_template(chat, tokenize=False) == whole.render(chat)
    assert again.special_tokens_map == whole.backend.special_tokens_map
    for text in (SEEN, "étrange", "</s> a good man"):
        # With the tokens that the post-processor adds.
        assert again(text)["input_ids"] == small.backend(text)["input_ids"]
    kept = np.array(small.kept)
    assert kept[again(SEEN)["input_ids"]].tolist() == whole.backend(SEEN)["input_ids"]
    assert kept[again.eos_token_id] == whole.backend.eos_token_id


def test_the_most_frequent_tokens_can_be_asked_for():
    whole = _WHOLE["byte_level"]
    counts = counted(whole, WORDS)
    sizes = [trim_tokenizer(whole, counts, most=most).vocabulary for most in (1, 30, 10_000)]
    assert 256 < sizes[0] < sizes[1] < sizes[2] <= whole.vocabulary
    frequent = int(counts.argmax())
    assert frequent in trim_tokenizer(whole, counts, most=1).kept
    with pytest.raises(RecipeError, match="at least 1"):
        trim_tokenizer(whole, counts, most=0)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_tokens_that_are_kept_are_the_same_bits(tied):
    model = tiny(0, tied=tied)
    model.config.eos_token_id, model.config.pad_token_id = [3, 250, 7], 250
    kept = [1, 3, 7, 40, 41, 200]
    small = trim_embeddings(copy.deepcopy(model), kept)
    tokens = torch.randint(0, len(kept), (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(small(tokens).logits, model(torch.tensor(kept)[tokens]).logits[..., kept])
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) is tied
    assert (small.config.vocab_size, small.config.eos_token_id, small.config.pad_token_id) == (6, [1, 2], None)


def test_tokens_that_are_not_there_cannot_be_kept():
    for kept in ([0, 257], [], [1, 1], [-1]):
        with pytest.raises(RecipeError, match="0 to 256"):
            trim_embeddings(tiny(0), kept)


def recipe(folder, **student):
    (folder / "novel.txt").write_text("Captain Wentworth was a good man. Anne was in want of a fortune. " * 30)
    shape = {"name": "llama", "layers": 2, "width": 32, "heads": 4}
    return {
        "task": "causal-lm",
        "data": {
            "name": "text",
            "path": str(folder / "novel.txt"),
            "options": {"tokenizer": str(folder), "context": 32, "test": 0.2},
        },
        "roles": {"teacher": {"model": shape}, "student": {"from": "teacher", "layers": 1, **student}},
        "method": {"name": "word_kd", "kd_ratio": 1.0},
        "train": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.003},
        "evaluate": ["token_loss", "size"],
    }


def test_a_run_with_fewer_tokens_cuts_the_teacher_too_and_leaves_a_folder_that_loads(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved(
        byte_level(size=600, text=WORDS + "Anne Elliot Captain Wentworth Lyme Bath Kellynch Uppercross " * 4), tmp_path
    )
    before = build_stage(load_recipe(recipe(tmp_path)), load_recipe(recipe(tmp_path)).stages[0])
    plain = recipe(tmp_path, vocabulary="seen", inner=64, scored="loss_increase")
    finished = run_recipe(plain, out=tmp_path / "run")
    _, built = reopen(tmp_path / "run")
    tokenizer = built.data.train.tokenizer
    assert tokenizer.vocabulary < tokenizer.origin.vocabulary
    teacher, student = built.stage.observers["teacher"].model, built.stage.student()
    assert teacher.config.vocab_size == student.config.vocab_size == tokenizer.vocabulary
    whole = before.stage.observers["teacher"].model
    assert torch.equal(teacher.get_input_embeddings().weight, whole.get_input_embeddings().weight[list(tokenizer.kept)])
    assert student.config.intermediate_size == 64
    assert finished.results["token_loss"]["loss"] > 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    ids = tokens("Anne was a good man", return_tensors="pt")["input_ids"]
    assert torch.equal(again(ids).logits, student.eval()(ids).logits)
    assert tokens.decode(ids[0]) == "Anne was a good man"
    assert json.loads((tmp_path / "run" / "student" / "config.json").read_text())["vocab_size"] == len(tokens)


def test_vocabularies_that_cannot_be_shared_are_refused(tmp_path):
    saved(byte_level(), tmp_path)
    plain = recipe(tmp_path, vocabulary="seen")
    plain["roles"]["teacher"] = {"remote": {"url": "http://127.0.0.1:9/v1", "model": "m"}}
    plain["roles"]["student"]["from"] = "smollm2-135m-instruct"
    loaded = load_recipe(plain)
    with pytest.raises(RecipeError, match="is a server"):
        build_stage(loaded, loaded.stages[0])
    with pytest.raises(RecipeError, match="belong to a copy"):
        load_recipe({**plain, "roles": {"student": {"model": "llama", "vocabulary": "seen"}}})


def test_a_kind_of_tokenizer_that_cannot_be_trimmed_is_refused():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    from language.tokenizers_made import wrapped

    marked = models.BPE(vocab={"a": 0, "a</w>": 1, "<end>": 2}, merges=[], end_of_word_suffix="</w>")
    whole = ours(wrapped(Backend(marked), eos_token="<end>"))
    with pytest.raises(DataError, match="end of words"):
        trim_tokenizer(whole, np.ones(3, np.int64))
