"""DistiLLM-2: one divergence for the teacher's answers, the opposite one for the student's."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import Divergence, divergence
from limbeck.functional.log_divergences import log_mixture, times
from limbeck.functional.sequences import sequence_means
from limbeck.hyperparameters import Count, Fraction
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import DENSE_TARGET, STUDENT, SequenceMethod, target_loss, whole_logits
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Term, Terms


def _growing(progress: Progress) -> float:
    """Weight of the student's answers: from 1 to 1.5 over the first half of the run."""
    return 1.0 + 0.5 * min(1.0, 2.0 * progress.fraction)


def _shrinking(progress: Progress) -> float:
    return 2.0 - _growing(progress)


@register(
    "distillm2",
    title="DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs",
    authors="Jongwoo Ko and Tianyi Chen and Sungnyun Kim and Tianyu Ding and Luming Liang and Ilya Zharkov and"
    " Se-Young Yun",
    paper="2503.07067",
    year=2025,
    family="sequence",
    equation=r"L = (2-\beta)\,\mathrm{KL}\big(p \,\|\, \alpha_1 p + (1-\alpha_1) q\big)(y_T)"
    r" + \beta\,\mathrm{KL}\big(q \,\|\, (1-\alpha_2) p + \alpha_2 q\big)(y_S)",
)
class DistiLLM2(SequenceMethod):
    """Pulls the student up on the teacher's answers and pushes it down on its own where the teacher disagrees.

    The batch holds the teacher's answer, and beside it the student's own to the same prompt, both written before the
    epoch: the view ``generated`` with ``generated_labels`` and ``generated_mask``.

    Terms:
        skew_kl: skew KL on the teacher's answer, mean over its tokens.
        skew_rkl: skew reverse KL on the student's answer, mean over its tokens, the student in the mixture constant.

    Deviations: the authors' code has both curricula switched off, with no way to turn them on, and fails silently if
    they are; so the released recipe is the default here. With ``adaptive_skew`` a sequence's skew follows how far apart
    the models are on it, against their mean distance over the first steps. There, their gradient also flows through the
    skew (``detach_skew: false``).

    Args:
        skew: largest share of a distribution itself in its mixture.
        generated_skew: the same on the student's answers; ``skew`` when None.
        adaptive_skew: whether the share follows each sequence.
        growing_weight: whether the weight of the student's answers grows from 1 to 1.5.
        anchor_steps: number of steps over whose sequences the mean distance is taken.
        least_skew: smallest share.
        detach_skew: whether the share is a constant.
    """

    needs = Needs(
        student={STUDENT},
        teacher={DENSE_TARGET},
        views=("generated",),
        batch={"labels", "mask", "generated_labels", "generated_mask"},
    )
    anchors: Tensor
    _gaps: Tensor
    _totals: Tensor
    _steps: Tensor

    def __init__(
        self,
        *,
        skew: Fraction = 0.1,
        generated_skew: Fraction | None = None,
        adaptive_skew: bool = False,
        growing_weight: bool = False,
        anchor_steps: Count = 10,
        least_skew: Fraction = 0.01,
        detach_skew: bool = True,
    ) -> None:
        super().__init__()
        self.skew, self.least_skew = skew, least_skew
        self.generated_skew = skew if generated_skew is None else generated_skew
        self.adaptive_skew = adaptive_skew
        self.anchor_steps = anchor_steps
        self.detach_skew = detach_skew
        self.weights = {
            "skew_kl": _shrinking if growing_weight else 1.0,
            "skew_rkl": _growing if growing_weight else 1.0,
        }
        self.register_buffer("anchors", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("_gaps", torch.zeros(4, dtype=torch.float64), persistent=False)
        self.register_buffer("_totals", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``skew_kl`` and ``skew_rkl``, a value for each sequence."""
        pairs = {
            "skew_kl": (student, teacher, batch["labels"], batch["mask"]),
            "skew_rkl": (
                student.views["generated"],
                teacher.views["generated"],
                batch["generated_labels"],
                batch["generated_mask"],
            ),
        }
        terms: Terms = {}
        for name, (ours, theirs, labels, mask) in pairs.items():
            if self.adaptive_skew:
                values = self._adaptive(name, ours, theirs, labels, mask)
            else:
                loss = target_loss(self._fixed(name), theirs, ours)
                values = self.position_losses(ours, {name: loss}, mask, gradient="backward")[name]
            terms[name] = Term(sequence_means(values, mask), mask.bool().any(-1))
        return terms

    def _fixed(self, name: str) -> Divergence:
        options = {"detach_mixture": True} if name == "skew_rkl" else {}
        return divergence(name, alpha=self._largest(name), **options)

    def _largest(self, name: str) -> float:
        return self.skew if name == "skew_kl" else self.generated_skew

    def shares(self, name: str, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Returns each sequence's share ``[B]`` from mean log-probabilities of its tokens, ``[B]`` of both models."""
        gap = log_p.exp() - log_q.exp() if name == "skew_kl" else log_q.exp() - log_p.exp()
        anchor = self.anchors[0 if name == "skew_kl" else 1]
        # Where the distance has the other sign this is above one, and the largest share is taken.
        largest = self._largest(name)
        share = (1 - (1 - largest) * anchor / (gap + 1e-5)).clamp(self.least_skew, largest)
        return share.detach() if self.detach_skew else share

    def _adaptive(self, name: str, student: Signals, teacher: Signals, labels: Tensor, mask: Tensor) -> Tensor:
        flags = mask.bool()
        logits = [whole_logits(s, r) for s, r in ((student, "student"), (teacher.detach(), "teacher"))]
        log_q, log_p = (x.masked_fill(~flags.unsqueeze(-1), 0.0).log_softmax(-1) for x in logits)
        chosen = labels.clamp(min=0).unsqueeze(-1)
        means = [sequence_means(x.gather(-1, chosen).squeeze(-1), mask) for x in (log_q, log_p)]
        self._observe(name, *means)
        known = bool(self.anchors.any())
        share = self.shares(name, *means) if known else torch.full_like(means[0], self._largest(name))
        weight = share.view(-1, 1, 1)
        if name == "skew_kl":
            return times(log_p.exp(), log_p - log_mixture(log_p, log_q, weight)).sum(-1)
        return times(log_q.exp(), log_q - log_mixture(log_q.detach(), log_p, weight)).sum(-1)

    @torch.no_grad()
    def _observe(self, name: str, log_q: Tensor, log_p: Tensor) -> None:
        """Adds the distances of a batch to those from which the anchors will be taken."""
        if not self.training or int(self._steps) >= self.anchor_steps:
            return
        gap = log_p.exp() - log_q.exp() if name == "skew_kl" else log_q.exp() - log_p.exp()
        place = 0 if name == "skew_kl" else 2
        self._gaps[place : place + 2] += torch.stack([gap.sum(), gap.new_tensor(float(len(gap)))]).to(self._gaps)

    def after_step(self, progress: Progress) -> None:
        """Takes the anchors from the sequences of all steps so far and all processes, until there are enough."""
        self._steps += 1
        if not self.adaptive_skew or int(self._steps) > self.anchor_steps:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._gaps)
        self._totals += self._gaps
        self._gaps.zero_()
        self.anchors.copy_(self._totals[::2] / self._totals[1::2].clamp(min=1))
