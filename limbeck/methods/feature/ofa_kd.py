"""OFA-KD: every stage of the student gives logits of its own, so that any two architectures can be compared."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.anatomy import anatomy_of
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.boosted_targets import boosted_cross_entropy
from limbeck.functional.classification import class_indices, cross_entropy
from limbeck.hyperparameters import Count, Fraction, Positive
from limbeck.methods.base import Method, Needs, Setup, register
from limbeck.methods.exit_heads import ConvolutionExit, TokenExit
from limbeck.signals import Batch, Signals, Terms


@register(
    "ofa_kd",
    title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    authors="Zhiwei Hao and Jianyuan Guo and Kai Han and Yehui Tang and Han Hu and Yunhe Wang and Chang Xu",
    paper="2310.19444",
    year=2023,
    family="feature",
    equation=r"L = L_{CE} + \ell(s, t; e) + \sum_k \ell(h_k(f^S_k), t; e_k),"
    r" \quad \ell(s, t; e) = -\sum_c \big[ (p^T_c + y_c)^e - y_c \big] \log p^S_c",
)
class OFAKD(Method):
    """Each stage of the student gets a small classifier, which learns the teacher's final logits as the student does.

    Only logits of the teacher are read, so it may have any architecture, and be a cache or an ensemble. The student's
    stages may be maps, tokens (with or without class tokens) or vectors. The classifiers are left out of the deployed
    student.

    Terms:
        ce: cross-entropy of the student's logits with the labels.
        kd: cross-entropy of the student's logits with the teacher's boosted probabilities.
        ofa: the same of the logits of the exits, added up.

    Deviations: none from the authors' loss; theirs exponentiates all classes, where the paper's equation leaves all but
    the true one as they are. Their projectors assume four stages, and this stage width for tokens; here the last stage
    of any number has the shortest exit, and tokens of another width are mapped first. With mixed-up labels the boosted
    class is the one of the larger share, as in their code.

    Args:
        exponents: above 1 stresses the true class; one for all, or one for each exit and a last one for the student's
            own logits.
        stages: which stages get an exit, counted from 1; all when None.
        temperature: divides all logits; losses are not multiplied by its square.
        label_smoothing: part of the mass of the labels in ``ce`` that is spread over all classes.
        exits: ``convolution`` or ``tokens`` builds all exits of that kind; ``auto`` takes transformer blocks for
            tokens and for maps that keep size and width over all stages, as a transformer's do, convolutions otherwise.
    """

    needs = Needs(student={"logits", "features.stages"}, teacher={"logits"}, batch={"labels"})

    def __init__(
        self,
        *,
        exponents: tuple[Positive, ...] = (1.0,),
        stages: tuple[Count, ...] | None = None,
        temperature: Positive = 1.0,
        label_smoothing: Fraction = 0.0,
        exits: Literal["auto", "convolution", "tokens"] = "auto",
    ) -> None:
        super().__init__()
        self.exponents = exponents
        self.stages = stages
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.kind: Literal["auto", "convolution", "tokens"] = exits
        self.exits = nn.ModuleList()
        self._read: tuple[int, ...] = ()
        self.weights = {"ce": 1.0, "kd": 1.0, "ofa": 1.0}

    def build(self, setup: Setup) -> None:
        """Makes an exit for each chosen stage.

        Raises:
            RecipeError: a stage is not there, or the number of exponents does not fit.
            NeedsError: a stage gives neither a map, nor tokens of a square grid, nor vectors.
        """
        features = setup.signals["student"].features["stages"]
        self._read = tuple(self._chosen(len(features)))
        logits = setup.signals["student"].logits
        assert logits is not None
        own = _classifier_width(setup, "student") or features[-1].shape[1 if features[-1].dim() != 3 else 2]
        widest = max(own, _classifier_width(setup, "teacher") or own)
        tokens = self.kind == "tokens" or (self.kind == "auto" and _like_a_transformer(features))
        for stage in self._read:
            deeper = len(features) - 1 - stage
            try:
                head: nn.Module = (
                    TokenExit(features[stage], own, logits.shape[1], max(deeper, 1))
                    if tokens
                    else ConvolutionExit(_channels(features[stage]), widest, logits.shape[1], deeper)
                )
            except ValueError as error:
                raise NeedsError(f"ofa_kd cannot read stage {stage + 1} of the student: {error}") from None
            self.exits.append(head.to(features[stage].device))

    def _chosen(self, count: int) -> list[int]:
        """Numbers from 0 of the stages with an exit."""
        stages = tuple(range(1, count + 1)) if self.stages is None else self.stages
        if not stages or len(set(stages)) < len(stages) or max(stages) > count:
            raise RecipeError(f"stages = {list(stages)}: choose different ones of the student's {count}, from 1 on")
        if len(self.exponents) not in (1, len(stages) + 1):
            raise RecipeError(
                f"exponents = {list(self.exponents)}: give one, or {len(stages) + 1}, one for each exit and a last one "
                "for the student's own logits"
            )
        return [stage - 1 for stage in stages]

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce``, ``kd`` and ``ofa``."""
        assert student.logits is not None
        assert teacher.logits is not None
        labels = class_indices(batch["labels"])
        features = student.features["stages"]
        exits = [head(features[stage]) for head, stage in zip(self.exits, self._read)]
        *at_exits, at_end = self.losses([*exits, student.logits], teacher.logits, labels)
        return {
            "ce": cross_entropy(
                student.logits, batch["labels"], label_smoothing=self.label_smoothing, reduction="none"
            ),
            "kd": at_end,
            "ofa": torch.stack(at_exits).sum(0),
        }

    def losses(self, logits: list[Tensor], teacher_logits: Tensor, labels: Tensor) -> list[Tensor]:
        """Returns the loss ``[B]`` of each exit's logits and of the student's own, which come last."""
        exponents = self.exponents if len(self.exponents) > 1 else self.exponents * len(logits)
        return [
            boosted_cross_entropy(
                own, teacher_logits, labels, exponent=exponent, temperature=self.temperature, reduction="none"
            )
            for own, exponent in zip(logits, exponents)
        ]


def _classifier_width(setup: Setup, role: str) -> int | None:
    """Width of the vector that a live model's classifier reads."""
    model = setup.models.get(role)
    path = "" if model is None else anatomy_of(model).head
    head = model.get_submodule(path) if model is not None and path else None
    return head.in_features if isinstance(head, nn.Linear) else None


def _channels(features: Tensor) -> int:
    return features.shape[2] if features.dim() == 3 else features.shape[1]


def _like_a_transformer(features: tuple[Tensor, ...]) -> bool:
    if any(f.dim() == 3 for f in features):
        return True
    same = len({f.shape for f in features}) == 1 and len(features) > 1
    return same and features[0].dim() == 4 and min(features[0].shape[2:]) > 1
