"""BD-KD: a small and a large model learn together, with divergences balanced sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

from limbeck.functional.balanced_divergences import certainty_weights
from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import Method, Needs, register
from limbeck.signals import Batch, Signals, Terms

_STUDENT_TERMS = ("ce", "forward", "reverse")
_PEER_TERMS = ("peer_ce", "peer_kl")


@register(
    "bd_kd",
    title="BD-KD: Balancing the Divergences for Online Knowledge Distillation",
    authors="Ibtihel Amara and Nazanin Sepahvand and Brett H. Meyer and Warren J. Gross and James J. Clark",
    paper="2212.12965",
    year=2022,
    family="online",
    equation=r"L_S = L_{CE} + \alpha T^2 \big[ w_f\,\mathrm{KL}(p^T \| p^S) + w_r\,\mathrm{KL}(p^S \| p^T) \big],"
    r" \quad L_T = L_{CE} + \beta T^2\,\mathrm{KL}(p^T \| p^S)",
)
class BDKD(Method):
    """A small student and a larger peer learn together; the student's divergence depends on who is more certain.

    Where the student is more certain than its peer, the forward divergence counts more and spreads the student's mass;
    where it is less certain, the reverse divergence counts more and sharpens it. The peer is only held near the
    student by the divergence whose first argument is its own distribution. Each has an optimizer of its own, and the
    other's predictions are constants for it. The student is what is kept.

    Terms:
        ce: the student's cross-entropy with the labels.
        forward: KL divergence from the peer's to the student's probabilities, times the sample's forward weight.
        reverse: KL divergence from the student's to the peer's probabilities, times the sample's reverse weight.
        peer_ce: the peer's cross-entropy with the labels.
        peer_kl: KL divergence of the peer's probabilities (first argument) from the student's.

    Deviations: the authors published no code, and the paper's weights, temperature and coefficients were not at hand.
    The parts and who is weighed by what are theirs; the values of the weights, the temperature of the entropies
    (``temperature``) and all coefficients are choices made here.

    Args:
        temperature: divides the logits in divergences and entropies; divergences are multiplied by its square.
        imbalance: weight of the divergence that a sample calls for; the other one counts once. 1 is a symmetric
            divergence.
        balance: ``step`` switches the weights with the sign of the gap of entropies, ``smooth`` by a sigmoid of it.
        sharpness: steepness of that sigmoid, in 1/nat.
        alpha: weight of ``forward`` and ``reverse``.
        beta: weight of ``peer_kl``.
    """

    needs = Needs(student={"logits"}, peer={"logits"}, batch={"labels"})
    learners: ClassVar[tuple[str, ...]] = ("student", "peer")

    def __init__(
        self,
        *,
        temperature: Positive = 4.0,
        imbalance: Positive = 2.0,
        balance: Literal["step", "smooth"] = "step",
        sharpness: Positive = 1.0,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.imbalance = imbalance
        self.sharpness = sharpness if balance == "smooth" else None
        self.weights = {"ce": 1.0, "forward": alpha, "reverse": alpha, "peer_ce": 1.0, "peer_kl": beta}

    def forward(self, batch: Batch, student: Signals, peer: Signals) -> Terms:
        """Returns the terms of both players."""
        assert student.logits is not None
        assert peer.logits is not None
        ours, theirs, temperature = student.logits, peer.logits, self.temperature
        weights = certainty_weights(
            ours, theirs, temperature=temperature, imbalance=self.imbalance, sharpness=self.sharpness
        )
        return {
            "ce": cross_entropy(ours, batch["labels"], reduction="none"),
            "forward": weights.forward * kl(ours, theirs, temperature=temperature, reduction="none"),
            "reverse": weights.reverse * kl(ours, theirs, temperature=temperature, reverse=True, reduction="none"),
            "peer_ce": cross_entropy(theirs, batch["labels"], reduction="none"),
            "peer_kl": kl(theirs, ours, temperature=temperature, reverse=True, reduction="none"),
        }

    def players(self, learners: Mapping[str, nn.Module]) -> dict[str, tuple[list[nn.Parameter], frozenset[str] | None]]:
        """Returns two players: each model minimises its own terms."""
        terms = {"student": frozenset(_STUDENT_TERMS), "peer": frozenset(_PEER_TERMS)}
        return {name: ([p for p in learners[name].parameters() if p.requires_grad], own) for name, own in terms.items()}
