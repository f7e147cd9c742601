"""Methods between models that read one text in different tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from language.corpus import loader, source, tiny, tokenizer
from language.test_cross_tokenizer_alignment import tokens
from limbeck.data.text import Encoded, TeacherText, TextLoader, TextSource
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.functional.spans import span_sums
from limbeck.methods.base import Setup, build_method
from limbeck.methods.sequence.base import token_log_probabilities
from limbeck.methods.sequence.text_pair import rewards_to_go, text_pair
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.other_tokens import same_tokens
from limbeck.signals import Batch, Signals, as_term
from limbeck.tasks.causal_lm import CausalLM

TEXT = "Sir Walter Elliot, of Kellynch Hall, in Somersetshire — née 漢字 \U0001f642 was a man who"
SHAPE = {"name": "llama", "layers": 1, "width": 16, "heads": 2}


def batch_of(*texts: str, student: str = "bytes", teacher: str = "byte_level", packed: bool = False) -> Batch:
    """Texts in the tokens of both."""
    side = tokens(student)
    made = [np.array([*side.tokenizer.encode(text), side.tokenizer.eos_id]) for text in texts]
    whole = [Encoded(ids, np.ones(len(ids), bool)) for ids in made]
    rows = TextSource("texts", whole, side.tokenizer, context=256, packed=packed)
    batch = next(TextLoader(rows, batch_size=8, shuffle=False).epoch(0))
    return TeacherText(side.tokenizer, tokens(teacher).tokenizer, source=rows)(batch)


def byte_model(side: str, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Log-probabilities of tokens under one model of bytes, in which every byte has its own chance."""
    chances = torch.linspace(1, 3, 257).double().log_softmax(0)
    pieces = tokens(side).pieces
    end = tokens(side).tokenizer.eos_id
    table = torch.stack([chances[256] if n == end else chances[list(p or b"")].sum() for n, p in enumerate(pieces)])
    return table[labels.clamp(min=0)]


@pytest.mark.parametrize("teacher", ["byte_level", "byte_fallback"])
def test_bug_36_two_tokenizers_of_one_model_of_bytes_give_every_span_the_same_probability(teacher: str) -> None:
    batch = batch_of(TEXT, "Anne", teacher=teacher)
    pair = text_pair(batch)
    ours = byte_model("bytes", batch["inputs"], pair.labels)
    theirs = byte_model(teacher, batch["teacher_inputs"], pair.teacher_labels)
    sums = [span_sums(v, s, pair.count) for v, s in ((ours, pair.spans), (theirs, pair.teacher_spans))]
    torch.testing.assert_close(*sums)
    assert rewards_to_go(pair, ours, theirs, discount=0.9).abs().max() < 1e-9
    # The chain rule: spans add up to the sequence, as far as it is compared.
    inside = torch.where(pair.spans >= 0, ours, 0.0)
    torch.testing.assert_close(sums[0].sum(-1), inside.sum(-1))
    assert int((pair.spans >= 0).sum()) > 0.9 * int(pair.mask.sum())


@pytest.mark.parametrize("teacher", ["byte_level", "byte_fallback", "unigram"])
def test_bug_37_one_token_more_at_the_beginning_does_not_shift_what_follows(teacher: str) -> None:
    one, other = batch_of(TEXT, teacher=teacher), batch_of("x" + TEXT, teacher=teacher)
    spans = [sorted({int(n) for n in b["spans"][0] if n >= 0}) for b in (one, other)]
    assert abs(len(spans[0]) - len(spans[1])) <= 3
    assert len(spans[0]) > 8


def test_packed_rows_are_aligned_sequence_by_sequence() -> None:
    apart, packed = batch_of("Lady Russell", "was at Bath"), batch_of("Lady Russell", "was at Bath", packed=True)
    assert len(packed["labels"]) == 1
    assert packed["teacher_inputs"]["segment_ids"].max() == 2
    whole = [sum(int(b["spans"][row].max()) + 1 for row in range(len(b["spans"]))) for b in (apart, packed)]
    assert whole[0] == whole[1]
    row = packed["teacher_spans"][0]
    assert row[row >= 0].tolist() == sorted(row[row >= 0].tolist())


def _same_text() -> tuple[Batch, Signals, Signals]:
    batch = next(loader().epoch(0))
    models = tiny(0), tiny(1, width=24)
    said = [CausalLM(vocabulary=257).run(m, batch["inputs"], frozenset({"hidden|logits"})) for m in models]
    return batch, said[0], said[1].detach()


def _built(name: str, batch: Batch, student: Signals, teacher: Signals, **options: object):
    method = build_method(name, **options)
    method.build(Setup({"student": student.detach(), "teacher": teacher}, {}, batch=batch))
    return method


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("written_out", [False, True])
def test_gold_of_one_tokenizer_is_gkd(beta: float, written_out: bool) -> None:
    batch, student, teacher = _same_text()
    told = batch
    if written_out:  # the same tokens as a teacher's own, aligned token by token
        mask = batch["mask"]
        spans = torch.where(mask, mask.long().cumsum(-1) - 1, -1)
        sides = {"teacher_labels": batch["labels"], "teacher_mask": mask, "teacher_spans": spans, "spans": spans}
        told = Batch({**batch, **sides, "teacher_inputs": batch["inputs"]})
    gold = _built("gold", told, student, teacher, beta=beta)
    terms = gold(told, student, teacher)
    expected = as_term(build_method("gkd", beta=beta)(batch, student, teacher)["jsd"]).mean()
    assert gold.weights == {"shared": 1.0, "rest": 0.0}
    torch.testing.assert_close(as_term(terms["shared"]).mean(), expected, rtol=1e-5, atol=1e-6)
    assert as_term(terms["rest"]).mean() == 0


def test_a_teacher_that_is_the_student_costs_nothing() -> None:
    batch, student, _ = _same_text()
    twin = student.detach()
    assert as_term(_built("uld", batch, student, twin)(batch, student, twin)["uld"]).mean() < 1e-6
    rewards = build_method("on_policy_distillation")(batch, student, twin)
    assert as_term(rewards["policy"]).mean().abs() < 1e-6


def test_chunks_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, student, teacher = _same_text()
    gold = _built("gold", batch, student, teacher)
    whole = as_term(gold(batch, student, teacher)["shared"]).mean()
    monkeypatch.setattr("limbeck.functional.loss_head.CHUNK_BYTES", 5000)
    torch.testing.assert_close(as_term(gold(batch, student, teacher)["shared"]).mean(), whole)


def test_a_scored_text_needs_no_distribution() -> None:
    batch = batch_of(TEXT)
    pair = text_pair(batch)
    student = CausalLM(vocabulary=257).run(tiny(0, context=256), batch["inputs"], frozenset({"hidden|logits"}))
    theirs = torch.where(pair.teacher_mask, -1.5, 0.0)
    method = build_method("on_policy_distillation")
    term = as_term(method(batch, student, Signals(logprobs=theirs))["policy"])
    log_q = token_log_probabilities(student.detach(), pair.labels, pair.mask)
    gaps = rewards_to_go(pair, log_q, theirs)
    torch.testing.assert_close(-term.values[pair.mask], gaps[pair.mask], rtol=1e-4, atol=1e-4)


def test_a_batch_that_names_no_spans_is_refused() -> None:
    batch = batch_of(TEXT)
    del batch["teacher_spans"]
    with pytest.raises(NeedsError, match="TeacherText"):
        text_pair(batch)


def recipe(tmp_path, **changes):
    """A teacher with a byte-level tokenizer of its own, a student that reads bytes."""
    tokens("byte_level").tokenizer.backend.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer": "bytes", "teacher_tokenizer": str(tmp_path / "tokenizer"), "context": 48}
    return {
        "task": "causal-lm",
        "data": {"name": "persuasion", "limit": {"train": 16, "test": 2}, "options": options},
        "roles": {"teacher": {"model": SHAPE}, "student": {"model": SHAPE}},
        "train": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.003},
        **changes,
    }


METHODS = ("uld", "dskd", {"methods": [{"name": "gold"}, {"name": "sft"}]})


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_recipe_across_tokenizers_trains(tmp_path, method) -> None:
    loaded = load_recipe(recipe(tmp_path, method=method))
    built = build_stage(loaded, loaded.stages[0])
    batch = built.stage.first_batch()
    assert batch["teacher_mask"].sum() < batch["mask"].sum()
    student = built.stage.learners["student"]
    before = [p.clone() for p in student.parameters()]
    built.stage.rehearse(batch)
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters()))
    rows = built.roles["teacher"].model.config.vocab_size
    assert rows == tokens("byte_level").tokenizer.vocabulary


def test_a_method_of_one_tokenizer_names_those_of_two(tmp_path) -> None:
    loaded = load_recipe(recipe(tmp_path, method="word_kd"))
    with pytest.raises(RecipeError, match="uld"):
        build_stage(loaded, loaded.stages[0])


def test_rollouts_are_written_in_the_teachers_tokens(tmp_path) -> None:
    steps = [{"name": "rollout", "max_new_tokens": 8, "prompt_tokens": 16}]
    loaded = load_recipe(recipe(tmp_path, method="on_policy_distillation", transforms=steps))
    built = build_stage(loaded, loaded.stages[0])
    batch = built.stage.first_batch()
    assert batch["on_policy"].all()
    pair = text_pair(batch)
    assert pair.mask.sum(-1).max() <= 8
    for row in range(len(pair.labels)):
        ours, theirs = pair.labels[row][pair.spans[row] >= 0], pair.teacher_labels[row][pair.teacher_spans[row] >= 0]
        told = [tokens(side).read(ids.tolist())[0] for side, ids in (("bytes", ours), ("byte_level", theirs))]
        assert told[0] == told[1]
    built.stage.rehearse(batch)


def test_equal_sizes_are_not_equal_tokenizers() -> None:
    ours = tokenizer()
    assert same_tokens(ours, tokenizer("other template"))
    assert not same_tokens(ours, tokens("byte_level").tokenizer)


def test_a_text_that_cannot_be_compared_is_refused() -> None:
    rows = source(vocabulary=1)  # nothing but zero bytes, of which the unigram tokenizer knows none
    with pytest.raises(DataError, match="can be compared"):
        TeacherText(tokenizer(), tokens("unigram").tokenizer)(
            next(TextLoader(rows, batch_size=4, shuffle=False).epoch(0))
        )
