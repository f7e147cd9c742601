"""Evaluations of what language models write, against counting by hand and other libraries."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from language.corpus import loader, tiny, tokenizer
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.errors import DataError, RecipeError, UnknownNameError
from limbeck.evaluate import Subject, evaluations
from limbeck.evaluate.continuations import continuations
from limbeck.functional.repetition import NgramIndex, common_prefix, distinct_ngrams, repeated_ngrams
from limbeck.generation import Sampling
from limbeck.tasks.causal_lm import CausalLM

SENTENCES = ("Anne was at home again. ", "Sir Walter read the letter, ", "they walked by the sea. ")


def text(parts: list[str], *, prompt: int = 0) -> TextSource:
    ids = [np.frombuffer(part.encode(), np.uint8).astype(np.int64) for part in parts]
    ended = [np.append(i, 256) for i in ids]
    return TextSource("sentences", [Encoded(i, np.arange(len(i)) > 0, prompt) for i in ended], tokenizer(), context=64)


def subject(held: TextSource, student: nn.Module, **options) -> Subject:
    batches = TextLoader(held, batch_size=8, shuffle=False)
    return Subject(student, batches, CausalLM(vocabulary=257), **options)


class Parrot(nn.Module):
    """Knows some texts by heart: it goes on with the one that begins like its input, and ends it."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.known = [[*t.encode(), 256] for t in texts]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*input_ids.shape, 257)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                before = ids[: place + 1]
                known = next((t for t in self.known if t[: len(before)] == before), None)
                following = known[len(before)] if known is not None and len(before) < len(known) else 256
                logits[row, place, following] = 50.0
        return logits


def test_ngrams_are_counted_as_one_would_by_hand():
    texts = [[1, 2, 3, 1, 2], [1, 2, 9]]
    pairs = [tuple(t[i : i + 2]) for t in texts for i in range(len(t) - 1)]
    assert distinct_ngrams(texts, order=2) == pytest.approx(len(set(pairs)) / len(pairs))
    assert repeated_ngrams(texts[0], order=2) == pytest.approx(1 - 3 / 4)
    assert np.isnan(repeated_ngrams([1], order=2))
    assert common_prefix([1, 2], [1, 2, 3]) == 2


def test_an_index_of_ngrams_finds_what_a_set_of_them_finds():
    numbers = np.random.default_rng(0)
    corpus = [numbers.integers(0, 4, 200).tolist() for _ in range(3)]
    known = {tuple(t[i : i + 5]) for t in corpus for i in range(len(t) - 4)}
    index = NgramIndex(corpus, order=5)
    for _ in range(5):
        asked = numbers.integers(0, 4, 60).tolist()
        grams = [tuple(asked[i : i + 5]) for i in range(56)]
        assert index.share(asked) == pytest.approx(np.mean([g in known for g in grams]))
    assert index.share(corpus[1]) == 1.0
    assert np.isnan(index.share([1, 2]))


def test_prompts_texts_and_ends_are_those_of_the_data():
    student = Parrot(SENTENCES[0], SENTENCES[1][:12])
    judged = subject(text(list(SENTENCES)), student)
    found = continuations(
        judged, judged.loader.source, samples=3, prompt=6, sampling=Sampling(greedy=True, max_new_tokens=10)
    )
    assert [bytes(p).decode() for p in found.prompts] == [s[:6] for s in SENTENCES]
    assert [bytes(t).decode() for t in found.truths] == [s[6:16] for s in SENTENCES]
    assert [bytes(w).decode() for w in found.written["student"]] == [SENTENCES[0][6:16], SENTENCES[1][6:12], ""]
    assert found.ended["student"] == (False, True, True)
    again = continuations(
        judged, judged.loader.source, samples=3, prompt=6, sampling=Sampling(greedy=True, max_new_tokens=10)
    )
    assert again is found


def test_likeness_is_one_for_equal_texts_and_counts_common_words_otherwise():
    teacher, student = Parrot(*SENTENCES), Parrot(SENTENCES[0], "Sir Walter left the letter, ", SENTENCES[2].upper())
    student.known[2] = [*SENTENCES[2][:6].encode(), *SENTENCES[2][6:].upper().encode(), 256]
    found = evaluations["text_overlap"].part(subject(text(list(SENTENCES)), student, teacher=teacher), prompt=6)
    assert found["teacher"] == {"rouge_l": pytest.approx(1.0), "exact_match": 1.0}
    # "left the letter" for "read the letter" after the prompt "Sir Wa": three of four words in order, both ways.
    expected = (1 + 0.75 + 1) / 3
    assert found["rouge_l"] == pytest.approx(expected)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["with_teacher"]["rouge_l"] == pytest.approx(expected)
    assert 0 < found["with_teacher"]["bleu"] < 1


def test_rouge_counts_letters_beyond_a_to_z():
    held = text(["Élan vital é à la carte"])
    found = evaluations["text_overlap"].part(subject(held, Parrot("Élan vital é à la carte")), prompt=5)
    assert found["rouge_l"] == found["exact_match"] == 1.0


def test_repetition_and_length_of_a_model_that_says_one_thing_forever():
    class Stuck(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor(97), 257).float().mul(50).expand(*input_ids.shape, 257)

    stuck, parrot = Stuck(), Parrot(*SENTENCES)
    found = evaluations["repetition"].part(
        subject(text(list(SENTENCES)), stuck, teacher=parrot), prompt=6, tokens=12, temperature=0.0
    )
    assert found["repeated"] == pytest.approx(1 - 1 / 9)
    assert found["distinct1"] == pytest.approx(1 / 36)
    assert found["length"] | {"each": 0} == {
        "mean": 12, "median": 12, "shortest": 12, "longest": 12, "ended": 0.0, "each": 0,
    }  # fmt: skip
    grams = Counter(tuple(s.encode()[6:18][i : i + 2]) for s in SENTENCES for i in range(11))
    assert found["truth"]["distinct2"] == pytest.approx(len(grams) / 33)
    assert found["teacher"]["distinct2"] == found["truth"]["distinct2"]


def test_a_model_that_knows_its_training_text_by_heart_is_caught():
    train, held = text(list(SENTENCES)), text(["Anne went to Lyme. ", "the sea is far away. "])
    for student, extractable in ((Parrot(*SENTENCES), 1.0), (Parrot(SENTENCES[0]), 1 / 3)):
        found = evaluations["memorization"].part(subject(held, student, train=train), prompt=6, tokens=15)
        assert found["extractable"] == pytest.approx(extractable)
        assert found["held_out"]["extractable"] == 0.0
        assert found["sequences"] == 3
    with pytest.raises(DataError, match="training text"):
        evaluations["memorization"].part(subject(held, student))


def test_copied_ngrams_are_those_of_the_training_text():
    train, held = text([SENTENCES[0] * 2]), text(["Anne w? "])
    copier = Parrot("Anne w" + SENTENCES[0][3:20])
    judged = subject(held, copier, train=train)
    found = evaluations["memorization"].part(judged, prompt=6, tokens=16, order=4)
    assert found["copied"] == 1.0
    assert found["held_out"]["copied"] is None or found["held_out"]["copied"] == 0.0


def test_throughput_counts_what_is_read_and_written():
    judged = Subject(tiny(0), loader(), CausalLM(vocabulary=257), teacher=tiny(1, layers=4))
    found = evaluations["throughput"].part(judged, prompt=16, tokens=4, repeats=1, batch=2)
    assert found["prefill"] > 0
    assert found["decode"] > 0
    assert found["first_token_ms"] == pytest.approx(1e3 * 32 / found["prefill"])
    weights = sum(p.numel() for p in judged.student.parameters()) * 4
    assert weights < found["peak_bytes"] < found["teacher"]["peak_bytes"]


@pytest.fixture
def tasks(tmp_path):
    """A task of the harness with its own questions: which byte comes next after a text."""
    questions = [{"text": "Anne", "choices": [" was", "ZZ"], "answer": n % 2} for n in range(4)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (tmp_path / "next_word.yaml").write_text(
        "task: next_word\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'questions.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return tmp_path


def test_the_harness_runs_tasks_of_ones_own_without_a_hub(tasks, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(tasks / "cache"))
    student = tiny(0)
    judged = Subject(student, loader(), CausalLM(vocabulary=257))
    found = evaluations["harness"].part(judged, tasks=("next_word",), folder=str(tasks))

    def score(choice: str) -> float:
        ids = torch.tensor([[*b"Anne", *choice.encode()]])
        with torch.no_grad():
            log_q = student(input_ids=ids).logits[0, :, :257].log_softmax(-1)
        return sum(float(log_q[place - 1, ids[0, place]]) for place in range(4, ids.shape[1]))

    says = 0 if score(" was") > score("ZZ") else 1
    assert found["tasks"]["next_word"]["acc"] == pytest.approx(np.mean([n % 2 == says for n in range(4)]))
    assert found["score"] == found["tasks"]["next_word"]["acc"]
    assert found["questions"] == {"next_word": 4}


def test_mistakes_about_the_harness_are_named(tasks, monkeypatch):
    import lm_eval.tasks

    # Its own thousands of tasks take long to list.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    judged = Subject(tiny(0), loader(), CausalLM(vocabulary=257))
    run = evaluations["harness"].part
    with pytest.raises(RecipeError, match="name the tasks"):
        run(judged)
    with pytest.raises(RecipeError, match="no folder"):
        run(judged, tasks=("next_word",), folder=str(tasks / "none"))
    with pytest.raises(DataError, match="models of transformers"):
        run(subject(text(list(SENTENCES)), Parrot()), tasks=("next_word",), folder=str(tasks))
    with pytest.raises(UnknownNameError, match="next_word"):
        run(judged, tasks=("next_wurd",), folder=str(tasks))
