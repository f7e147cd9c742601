"""Evaluations of what language models say about held-out text, against plain loops over full distributions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from language.corpus import loader, source, tiny
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.errors import DataError
from limbeck.evaluate import Subject, evaluate, evaluations
from limbeck.evaluate.frequency_bands import band_of_tokens
from limbeck.functional.metrics import expected_calibration_error
from limbeck.tasks.causal_lm import CausalLM


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(
        tiny(0, layers=1),
        loader(batch_size=4, count=10),
        CausalLM(vocabulary=257),
        teacher=tiny(1),
        train=source(count=40),
    )


@pytest.fixture(scope="module")
def distributions(subject):
    """Float64 log-probabilities of student and teacher at every place that counts, and the true tokens."""
    found, labels = {"student": [], "teacher": []}, []
    with torch.no_grad():
        for batch in subject.loader.epoch(0):
            at = batch["mask"]
            labels.append(batch["labels"][at])
            for role, model in subject.roles.items():
                logits = subject.task.run(model, batch["inputs"], frozenset({"logits"})).logits
                found[role].append(logits[at].double().log_softmax(-1))
    return {role: torch.cat(parts) for role, parts in found.items()} | {"labels": torch.cat(labels)}


def test_agreement_is_that_of_the_full_distributions(subject, distributions):
    p, q, labels = (distributions[name] for name in ("teacher", "student", "labels"))
    found = evaluations["token_agreement"].part(subject)
    tops = [[set(row.topk(5).indices.tolist()) for row in x] for x in (p, q)]
    same = p.argmax(-1) == q.argmax(-1)
    wrong = p.argmax(-1) != labels
    expected = {
        "top1": same.double().mean(),
        "top5": sum(len(a & b) / 5 for a, b in zip(*tops)) / len(labels),
        "on_teacher_errors": same[wrong].double().mean(),
        "expected": (p.exp() * q.exp()).sum(-1).mean(),
        "total_variation": (p.exp() - q.exp()).abs().sum(-1).mean() / 2,
        "kl_teacher_student": (p.exp() * (p - q)).sum(-1).mean(),
        "kl_student_teacher": (q.exp() * (q - p)).sum(-1).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert sum(found["right"].values()) == pytest.approx(1.0)
    gap = abs(found["right"]["student_only"] - found["right"]["teacher_only"])
    assert found["top1"] <= 1 - gap + 1e-9


def test_a_student_that_is_its_teacher_agrees_in_everything(subject):
    twin = Subject(subject.teacher, subject.loader, subject.task, teacher=subject.teacher)
    found = evaluations["token_agreement"].part(twin)
    assert found["top1"] == found["top5"] == 1.0
    assert found["kl_teacher_student"] == found["kl_student_teacher"] == found["total_variation"] == 0.0


def test_calibration_of_tokens_is_that_of_a_classifier(subject, distributions):
    found = evaluations["token_calibration"].part(subject)
    for role, results in (("student", found), ("teacher", found["teacher"])):
        log_q, labels = distributions[role], distributions["labels"]
        loss = -log_q.gather(-1, labels.unsqueeze(-1)).mean()
        entropy = -(log_q.exp() * log_q).sum(-1).mean()
        assert results["ece"] == pytest.approx(expected_calibration_error(log_q, labels).item(), abs=1e-6)
        assert results["nll"] == pytest.approx(float(loss), rel=1e-5)
        assert results["overconfidence"] == pytest.approx(float(loss - entropy), rel=1e-4)
        assert sum(results["curve"]["samples"]) == len(labels)


def test_a_model_that_tells_true_probabilities_is_neither_over_nor_underconfident():
    numbers, chances = np.random.default_rng(0), np.array([0.7, 0.2, 0.1])
    text = [Encoded(numbers.choice(3, 65, p=chances), np.arange(65) > 0) for _ in range(60)]

    class Coin(torch.nn.Module):
        def __init__(self, sharpness: float) -> None:
            super().__init__()
            self.sharpness = sharpness

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits = torch.full((257,), -1e9)
            logits[:3] = torch.tensor(chances).log().float() * self.sharpness
            return logits.expand(*input_ids.shape, 257)

    held = TextLoader(TextSource("coins", text, source().tokenizer, context=64), batch_size=20, shuffle=False)
    found = [
        evaluations["token_calibration"].part(Subject(Coin(s), held, CausalLM(vocabulary=257))) for s in (1.0, 3.0)
    ]
    assert abs(found[0]["overconfidence"]) < 0.03
    assert found[0]["ece"] < 0.02
    assert found[1]["overconfidence"] > 0.3
    assert found[1]["ece"] > 0.2


def test_bands_split_the_divergence_by_the_frequency_of_the_true_token(subject, distributions):
    p, q, labels = (distributions[name] for name in ("teacher", "student", "labels"))
    counts = torch.zeros(257, dtype=torch.long)
    for s in subject.train.sequences:
        for token, learn in zip(s.ids[1:], s.learn[1:]):
            counts[token] += int(learn)
    found = evaluations["frequency_bands"].part(subject, bands=3)["bands"]
    of_token = band_of_tokens(counts, 3)
    kl = (p.exp() * (p - q)).sum(-1)
    present = [band for band in (0, 1, 2, -1) if bool((of_token[labels] == band).any())]
    assert len(found) == len(present)
    for band, numbers in zip(present, found):
        chosen = of_token[labels] == band
        assert numbers["tokens"] == int(chosen.sum())
        assert numbers["kl"] == pytest.approx(float(kl[chosen].mean()), rel=1e-4)
    whole = sum(b["kl"] * b["tokens"] for b in found) / sum(b["tokens"] for b in found)
    assert whole == pytest.approx(float(kl.mean()), rel=1e-4)
    frequencies = [b["frequency"] for b in found if b["frequency"][1] > 0]
    assert all(a[0] >= b[1] for a, b in pairwise(frequencies))


def test_bands_hold_about_equally_many_occurrences_and_what_never_occurs_has_its_own():
    counts = torch.tensor([0, 50, 1, 30, 1, 18, 0])
    assert band_of_tokens(counts, 2).tolist() == [-1, 0, 1, 1, 1, 1, -1]
    assert band_of_tokens(counts * 7, 2).tolist() == band_of_tokens(counts, 2).tolist()
    many = torch.arange(1, 200)
    mass = torch.bincount(band_of_tokens(many, 4), weights=many.double())
    assert (mass / mass.sum() - 0.25).abs().max() < 0.01


def test_what_needs_the_training_text_or_text_at_all_says_so(subject):
    bare = Subject(subject.student, subject.loader, subject.task)
    with pytest.raises(DataError, match="training text"):
        evaluations["frequency_bands"].part(bare)
    with pytest.raises(DataError, match="classification"):
        evaluate(subject.student, loader=subject.loader, task=subject.task, names=["accuracy"])
    from limbeck.tasks.classification import Classification

    with pytest.raises(DataError, match="causal-lm"):
        evaluate(subject.student, loader=[], task=Classification(), names=["token_loss"])
