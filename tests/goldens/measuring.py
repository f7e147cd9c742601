"""Adapter of measuring: fidelity of a student to its teacher, and the tests of improvements."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from goldens.replay import Case, replays
from limbeck.evaluate.significance import analysis_of_variance, improvement_test, rank_correlation
from limbeck.functional import fidelity, metrics
from limbeck.functional.sequence_overlap import corpus_bleu, sentence_bleu

_PADDING = -1


@replays("agreement / fidelity / correlation metrics")
def fidelity_metrics(case: Case) -> dict[str, Any]:
    teacher, student, labels = (case.input(name) for name in ("teacher_logits", "student_logits", "labels"))
    temperature, order = float(case.config["temperature"]), int(case.config["bleu_max_n"])
    both_wrong = (teacher.argmax(1) != labels) & (student.argmax(1) != labels)
    same = teacher.argmax(1) == student.argmax(1)
    return {
        "out.top1_agreement": metrics.agreement(student, teacher),
        "out.teacher_accuracy": metrics.accuracy(teacher, labels),
        "out.student_accuracy": metrics.accuracy(student, labels),
        "out.agreement_on_teacher_errors": fidelity.agreement_on_errors(student, teacher, labels),
        "out.both_wrong_same": (both_wrong & same).double().mean(),
        "out.avg_kl": metrics.predictive_divergence(teacher, student, temperature=temperature),
        "out.tv": fidelity.total_variation(student, teacher, temperature=temperature),
        "out.expected_agreement": fidelity.expected_agreement(student, teacher, temperature=temperature),
        **_bleu(case, order),
        **_tests(case),
    }


def _bleu(case: Case, order: int) -> dict[str, Any]:
    hypotheses, references = (_texts(case.input(name)) for name in ("student_tokens", "teacher_tokens"))
    sentences = [sentence_bleu(h, r, order=order) for h, r in zip(hypotheses, references)]
    return {
        "out.sentence_bleu": np.array(sentences),
        "out.mean_sentence_bleu": np.mean(sentences),
        "out.corpus_bleu": corpus_bleu(hypotheses, references, order=order),
    }


def _texts(padded: Tensor) -> list[list[int]]:
    return [[token for token in row if token != _PADDING] for row in padded.tolist()]


def _tests(case: Case) -> dict[str, Any]:
    groups = case.input("anova_groups").tolist()
    ranks = rank_correlation(case.input("corr_x").tolist(), case.input("corr_y").tolist())
    # The improvements are those whose correlation with `corr_x` is asked for.
    improvement = improvement_test(case.input("corr_y").tolist())
    variance = analysis_of_variance(*groups)
    return {
        "out.spearman_rho": ranks.statistic,
        "out.spearman_p": ranks.p,
        "out.t_stat": improvement.statistic,
        "out.t_p": improvement.p,
        "out.anova_F": variance.statistic,
        "out.anova_p": variance.p,
    }
