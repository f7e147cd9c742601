"""A generation that learns from its parent and stays anchored to the base teachers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import Method, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "recursive_meta_distillation",
    title="Recursive Meta-Distillation: An Axiomatic Framework for Iterative Knowledge Refinement",
    authors="Aaron R. Flouro and Shawn P. Chadwick",
    paper="2601.13100",
    year=2026,
    family="self",
    equation=r"L = \lambda\,\mathrm{KL}(P \| p^S) + (1 - \lambda)\,\mathrm{KL}(M_k \| p^S)",
)
class RecursiveMetaDistillation(Method):
    """One generation of a chain: the student learns from the base teachers and from the generation before it.

    The best student of the loss is exactly the anchored operator of :mod:`limbeck.functional.meta_distillation`: the
    linear mixture of base and parent with ``linear``, the geometric one with ``geometric``. A chain is a recipe with a
    stage for each generation; several base teachers are an ensemble that averages probabilities, or logits for the
    geometric mixture. Labels are not used.

    Terms:
        anchor: divergence between the base teachers' mixture and the student.
        parent: divergence between the generation before and the student.

    Deviations: the paper's body was not at hand; the operators follow its abstract, and so does their training.

    Args:
        anchor: weight of ``anchor``, the contraction rate of a perfect student being 1 less this; ``parent`` has the
            rest. With 0 the chain has no anchor and drifts, with 1 no memory.
        kind: ``linear`` minimises KL(target || student), ``geometric`` KL(student || target).
        temperature: divides all logits before the softmax.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, parent={"logits"})

    def __init__(
        self,
        *,
        anchor: Fraction = 0.3,
        kind: Literal["linear", "geometric"] = "linear",
        temperature: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.kind, self.temperature = kind, temperature
        self.weights = {name: w for name, w in (("anchor", anchor), ("parent", 1 - anchor)) if w > 0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals, parent: Signals) -> Terms:
        """Returns ``anchor`` and ``parent``, as far as they count."""
        targets = {"anchor": teacher, "parent": parent}
        return {name: self._follow(student.logits, targets[name].logits) for name in self.weights}

    def _follow(self, student: Tensor | None, target: Tensor | None) -> Tensor:
        assert student is not None
        assert target is not None
        reverse = self.kind == "geometric"
        return kl(student, target, temperature=self.temperature, reverse=reverse, reduction="none")
