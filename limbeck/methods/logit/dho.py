"""DHO: few labels and a teacher teach a classifier each, and the deployed student mixes both."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from limbeck.anatomy import head_of
from limbeck.functional.divergences import kl
from limbeck.functional.head_mixture import mixed_log_probabilities, search_mixture
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import LogitMethod, Needs, Passes, Setup, label_loss, register
from limbeck.methods.heads import check_replaceable, further_head, with_classifier
from limbeck.methods.projectors import project
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Term, Terms


class MixedHeads(nn.Module):
    """Two classifiers on the same features that answer with the logarithms of their mixed probabilities.

    Args:
        label_head: learnt labels.
        teacher_head: learnt the teacher.
        alpha: share of the first.
        beta: temperature of the second.
    """

    def __init__(self, label_head: nn.Module, teacher_head: nn.Module, alpha: float, beta: float) -> None:
        super().__init__()
        self.label_head, self.teacher_head = label_head, teacher_head
        self.alpha, self.beta = alpha, beta

    def forward(self, features: Tensor) -> Tensor:
        """Returns ``[B, C]``."""
        both = self.label_head(features), self.teacher_head(features)
        return mixed_log_probabilities(*both, alpha=self.alpha, beta=self.beta)


@register(
    "dho",
    title="Simple yet Effective Semi-supervised Knowledge Distillation from Vision-Language Models via Dual-Head "
    "Optimization",
    authors="Seongjae Kang and Dong Bok Lee and Hyungjoon Jang and Sung Ju Hwang",
    paper="2505.07675",
    year=2025,
    family="logit",
    equation=r"L = \lambda\,L_{CE}(s^{(1)}_l, y) + (1-\lambda)\,T^2 \big[ \mathrm{KL}(p^T_l \| p^{(2)}_l)"
    r" + \mathrm{KL}(p^T_u \| p^{(2)}_u) \big], \quad \hat p = \alpha\,\mathrm{softmax}(s^{(1)})"
    r" + (1-\alpha)\,\mathrm{softmax}(s^{(2)} / \beta)",
)
class DHO(LogitMethod):
    """Labels and a biased teacher contradict each other in one classifier; two of them are reconciled afterwards.

    The student's own classifier learns the labels, of however few samples; a second one on the same pooled features
    learns the teacher on all samples, labelled and unlabelled. The deployable student holds both and answers with the
    logarithm of their mixed probabilities. How they are mixed needs no training: it is set, or chosen on held-out data.

    Terms:
        ce: cross-entropy of the student's own classifier with the labels, over the labelled samples.
        kd: KL divergence of the second classifier from the teacher, over the labelled samples.
        kd_unlabelled: likewise, over the unlabelled samples; absent where all have a label.

    Deviations: labelled and unlabelled samples pass the student together, so normalisation sees both, where the
    authors run them apart. Their start of both classifiers from text embeddings is not repeated. Their ImageNet run
    adds the three terms with equal weights.

    Args:
        label_weight: lambda, the weight of ``ce``; the other terms get the rest.
        temperature: divides the logits of the second classifier and of the teacher before the softmax.
        alpha: share of the label classifier in the deployed mixture.
        beta: temperature of the second classifier in the deployed mixture.
        search: whether ``alpha`` and ``beta`` are chosen by their accuracy on held-out data after every epoch.
        ties: which of equally good mixtures a search takes: the ``first`` as the authors do, which favours the second
            classifier, or the ``central`` one, whose share is closest to one half.
    """

    semi_supervised = True
    extends_student = True
    mixture: Tensor

    def __init__(
        self,
        *,
        label_weight: Fraction = 0.5,
        temperature: Positive = 2.0,
        alpha: Fraction = 0.5,
        beta: Positive = 0.5,
        search: bool = False,
        ties: Literal["first", "central"] = "first",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.search = self.refreshes = search
        self.ties: Literal["first", "central"] = ties
        self.needs = Needs(
            student={"logits", "features.pooled"},
            teacher={"logits"},
            batch={"labels"},
            holdout="passes" if search else None,
        )
        self.head: nn.Module = nn.Identity()
        self.register_buffer("mixture", torch.tensor([alpha, beta], dtype=torch.float64))
        rest = 1 - label_weight
        self.weights = {"ce": label_weight, "kd": rest, "kd_unlabelled": rest}

    def build(self, setup: Setup) -> None:
        """Makes the second classifier.

        Raises:
            NeedsError: the student's classifier cannot be exchanged for a mixture.
        """
        check_replaceable(setup, "dho")
        logits = setup.signals["student"].logits
        assert logits is not None
        self.head = further_head(setup, logits.shape[1], "dho")
        if "unlabelled_mask" not in (setup.batch or {}):
            self.weights.pop("kd_unlabelled", None)

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce``, ``kd`` and, where there are samples without a label, ``kd_unlabelled``."""
        assert student.logits is not None
        assert teacher.logits is not None
        ours, theirs = self.logit_transform(self._second(student)), self.logit_transform(teacher.logits)
        values = kl(ours, theirs, temperature=self.temperature, reduction="none")
        terms: Terms = {"ce": label_loss(student.logits, batch)}
        if "unlabelled_mask" not in batch:
            return {**terms, "kd": values}
        return {
            **terms,
            "kd": Term(values, batch["labelled_mask"]),
            "kd_unlabelled": Term(values, batch["unlabelled_mask"]),
        }

    def _second(self, student: Signals) -> Tensor:
        return project(self.head, student.feature("pooled").flatten(1))

    @torch.no_grad()
    def refresh(self, progress: Progress, passes: Passes) -> None:
        """Chooses the mixture by its accuracy on the held-out samples that have a label."""
        weight, bias = (_whole(parameter) for parameter in self.head.parameters())
        rows = []
        for batch, signals in passes.holdout():
            student, labels = signals["student"], batch["labels"]
            assert student.logits is not None
            known = labels >= 0
            features = student.feature("pooled").flatten(1)[known].to(weight.dtype)
            rows.append((student.logits[known], linear(features, weight, bias), labels[known]))
        columns = [torch.cat(column) for column in zip(*rows)]
        if columns and len(columns[2]):
            found = search_mixture(*columns, ties=self.ties)
            self.mixture.copy_(torch.tensor([found.alpha, found.beta], dtype=torch.float64))

    def finish(self, student: nn.Module) -> nn.Module:
        """Returns a copy of the student with both classifiers, mixed."""
        alpha, beta = self.mixture.tolist()
        return with_classifier(student, MixedHeads(head_of(student), self.head, alpha, beta))


def _whole(parameter: Tensor) -> Tensor:
    """Returns all of a parameter that may lie in parts on several processes."""
    full = getattr(parameter, "full_tensor", None)
    return parameter.detach() if full is None else full().detach()
