"""Fidelity to a teacher, temperature scaling and BLEU, against loops, scipy and hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torchmetrics.functional.text import bleu_score

from limbeck.functional import fidelity, metrics
from limbeck.functional.sequence_overlap import corpus_bleu, sentence_bleu
from limbeck.functional.temperature_scaling import optimal_temperature


def pair(seed: int = 0, samples: int = 200, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    student = teacher + torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_agreement_is_the_overlap_of_sets(k: int) -> None:
    student, teacher, _ = pair()
    sets = [[set(row) for row in logits.topk(k).indices.tolist()] for logits in (student, teacher)]
    expected = sum(len(a & b) / k for a, b in zip(*sets)) / len(student)
    assert fidelity.top_k_agreement(student, teacher, k=k).item() == pytest.approx(expected)
    if k == 1:
        assert fidelity.top_k_agreement(student, teacher, k=1) == metrics.agreement(student, teacher)
    with pytest.raises(ValueError, match="k should"):
        fidelity.top_k_agreement(student, teacher, k=8)


def test_a_student_that_is_its_teacher() -> None:
    _, teacher, labels = pair()
    assert fidelity.top_k_agreement(teacher, teacher, k=3) == 1
    assert fidelity.agreement_on_errors(teacher, teacher, labels) == 1
    assert fidelity.total_variation(teacher, teacher) == 0
    assert metrics.predictive_divergence(teacher, teacher, temperature=3.0) == 0


def test_agreement_on_errors_looks_only_where_the_teacher_is_wrong() -> None:
    teacher = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [5, 0, 0]])
    student = torch.tensor([[5.0, 0, 0], [0, 0, 5], [0, 0, 5], [0, 5, 0]])
    labels = torch.tensor([0, 0, 1, 2])  # the teacher errs on the last three; the student repeats one error
    assert fidelity.agreement_on_errors(student, teacher, labels).item() == pytest.approx(1 / 3)
    assert math.isnan(fidelity.agreement_on_errors(student, teacher, teacher.argmax(1)).item())


def test_expected_agreement_of_a_guess_is_one_in_so_many_classes() -> None:
    _, teacher, _ = pair()
    assert fidelity.expected_agreement(torch.zeros_like(teacher), teacher).item() == pytest.approx(1 / 7)


def test_total_variation_bounds_the_divergence_by_pinsker() -> None:
    student, teacher, _ = pair(2)
    for temperature in (1.0, 4.0):
        far = fidelity.total_variation(student, teacher, temperature=temperature)
        kl = metrics.predictive_divergence(teacher, student, temperature=temperature)
        assert 0 < far <= (kl / 2).sqrt()


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_optimal_temperature_is_where_a_search_finds_the_lowest_loss(scale: float) -> None:
    logits, _, _ = pair(3)
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)

    def loss(log_temperature: float) -> float:
        return metrics.negative_log_likelihood(scale * logits / math.exp(log_temperature), labels).item()

    expected = math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x)
    assert optimal_temperature(scale * logits, labels) == pytest.approx(expected, rel=1e-4)


def test_optimal_temperature_stays_within_bounds_and_knows_excluded_classes() -> None:
    sure = torch.eye(4) * 9
    cold = optimal_temperature(sure, torch.arange(4))
    assert 1e-3 <= cold < 0.1
    assert metrics.negative_log_likelihood(sure / cold, torch.arange(4)) == 0
    assert optimal_temperature(sure, torch.arange(4).roll(1)) == pytest.approx(1e3)
    logits, _, labels = pair(4, classes=3)
    wide = torch.cat([logits, torch.full((len(logits), 1), -math.inf, dtype=torch.float64)], 1)
    assert optimal_temperature(wide, labels) == pytest.approx(optimal_temperature(logits, labels))


def texts(seed: int) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    references = [torch.randint(6, (n,), generator=generator).tolist() for n in (9, 14, 11, 20)]
    hypotheses = [r[: len(r) - 2] + torch.randint(6, (3,), generator=generator).tolist() for r in references]
    return hypotheses, references


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_corpus_bleu_equals_torchmetrics(seed: int) -> None:
    hypotheses, references = texts(seed)

    def words(tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    theirs = bleu_score([words(h) for h in hypotheses], [[words(r)] for r in references])
    assert corpus_bleu(hypotheses, references) == pytest.approx(theirs.item(), abs=1e-6)


def test_bleu_of_equal_short_and_empty_texts() -> None:
    assert corpus_bleu([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1
    assert sentence_bleu([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    assert corpus_bleu([[1, 2, 3]], [[1, 2, 3]]) == 0  # it has no n-gram of order 4
    assert sentence_bleu([], [1, 2]) == 0
    assert sentence_bleu([1, 2, 3, 4], [1, 2, 3, 4, 5, 6]) == pytest.approx(math.exp(1 - 6 / 4))
    with pytest.raises(ValueError, match="references"):
        corpus_bleu([[1]], [])
