"""Orderings that the literature reports, held against comparisons of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limbeck.bench.table import Row, Summary, apart, summarise
from limbeck.bench.terms import Terms


@dataclass(frozen=True)
class Ordering:
    """A published claim that one arm is better than another.

    Attributes:
        better: arm that is said to be better.
        worse: arm that is said to be worse.
        source: who reports it.
    """

    better: str
    worse: str
    source: str


_OWN = {
    "none": ("kd", "label_smoothing", "dml", "born_again", "uskd", "lsskd", "fitnet", "at", "nst", "fsp",
             "weighted_self_distillation"),
    "kd": ("kd + standardize", "dkd", "dist", "mlkd", "vid", "ofd", "reviewkd", "simkd", "crd", "nkd", "pld", "sinkd",
           "dhkd", "nd_loss", "trg", "ofa_kd", "mcmi", "bd_kd", "lelp", "mix_kd", "hard", "kd_aif", "tgeo_kd",
           "recursive_meta_distillation", "dho"),
    "dkd": ("mlkd", "nkd"),
    "dist": ("pld",),
    "crd": ("reviewkd",),
    "ofd": ("reviewkd",),
    "dml": ("bd_kd",),
}  # fmt: skip
_ABLATIONS = {
    "kd, T = 1 beside the labels": ("nkd",),
    "kd, half": ("tgeo_kd",),
    "kd, all mixed": ("mix_kd",),
    "mix_kd, nothing mixed": ("mix_kd",),
    "mix_kd, mixed teacher": ("mix_kd",),
    "kd without labels": ("dho",),
    "dhkd, one classifier": ("dhkd",),
    "dhkd": ("dhkd, aligned",),
    "dkd": ("dkd + standardize",),
    "pld, uniform places": ("pld",),
    "mtard, fixed": ("mtard",),
    "random": ("pcoreset",),
    "uncertainty": ("pcoreset",),
    "class_balanced": ("pcoreset",),
    "margin": ("rad",),
}
"""Variants of a method, or what its paper compares it with, by the names of arms in the shipped comparisons."""
_CRD_TABLE = ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "fsp", "nst")

_OF_TEXT = {
    "sft": ("word_kd", "seq_kd", "minillm", "gkd", "on_policy_distillation", "first", "redi", "opsd", "miniplm", "ddk"),
    "word_kd": ("seq_kd", "minillm", "gkd", "speculative_kd", "taid", "dckd", "miniplm", "ddk"),
    "seq_kd": ("imitkd", "minillm", "gkd", "uld"),
    "imitkd": ("gkd", "distillm", "speculative_kd"),
    "minillm": ("distillm", "taid"),
    "gkd": ("distillm", "speculative_kd", "taid", "tsd_kd", "adpa"),
    "distillm": ("distillm2", "taid", "tsd_kd"),
    "uld": ("dskd", "gold"),
    "dckd": ("adpa",),
    "dpo": ("redi",),
    "on_policy_distillation": ("kdrl",),
    "reward alone": ("kdrl", "rlad", "opsd"),
    "kdrl": ("rlad",),
}


def _method(arm: str) -> str:
    """Returns the method of an arm: what a transform of logits is put before, or a variant is told of."""
    return arm.rpartition("+ ")[2] if arm.endswith("+ standardize") else arm.partition(",")[0]


PUBLISHED = (
    *(
        Ordering(arm, base, f"authors of {_method(arm)}")
        for named in (_OWN, _ABLATIONS)
        for base, arms in named.items()
        for arm in arms
    ),
    *(Ordering(arm, base, f"authors of {arm}") for base, arms in _OF_TEXT.items() for arm in arms),
    *(Ordering("kd", arm, "Tian et al., 2020, table 1") for arm in _CRD_TABLE),
)
"""Claims of papers about methods that limbeck has. Tian et al. (https://arxiv.org/abs/1910.10699) compared KD with
earlier feature methods on CIFAR-100; the others are each paper's own: of image classifiers mostly on CIFAR-100 and
ImageNet, of language models on what students write after instructions, summaries, translations or sums."""

HOLDS, FAILS, UNTOLD = "holds", "fails", "cannot be told"


def judge(ordering: Ordering, summaries: Mapping[str, Summary]) -> tuple[str, float] | None:
    """Returns whether an ordering holds in a comparison, and by how much the first arm is better.

    It holds, or fails, where the difference is above two standard errors.

    Args:
        ordering: the claim.
        summaries: the arms of the comparison by label.

    Returns:
        The verdict and the difference, or None where the comparison lacks one of the arms.
    """
    better, worse = summaries.get(ordering.better), summaries.get(ordering.worse)
    if better is None or worse is None:
        return None
    return {1: HOLDS, -1: FAILS, 0: UNTOLD}[apart(better, worse)], better.terms.gain(better.mean, worse.mean)


def judged(
    results: Mapping[str, Sequence[Row]], terms: Mapping[str, Terms] | None = None
) -> list[tuple[Ordering, dict[str, tuple[str, float]]]]:
    """Returns every published ordering with its verdict in each comparison that has both arms.

    Args:
        results: rows by comparison.
        terms: how a comparison judges; by accuracy where it is not named.
    """
    by_suite = {suite: {s.arm: s for s in summarise(rows, (terms or {}).get(suite))} for suite, rows in results.items()}
    found = []
    for ordering in PUBLISHED:
        verdicts = {suite: v for suite, arms in by_suite.items() if (v := judge(ordering, arms)) is not None}
        if verdicts:
            found.append((ordering, verdicts))
    return found
