"""DML: two students that teach each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Positive
from limbeck.methods.base import Method, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "dml",
    title="Deep Mutual Learning",
    authors="Ying Zhang and Tao Xiang and Timothy M. Hospedales and Huchuan Lu",
    paper="1706.00384",
    year=2018,
    family="online",
    equation=r"L_1 = L_{CE}(s_1, y) + T^2\,\mathrm{KL}(p_2 \| p_1),"
    r" \qquad L_2 = L_{CE}(s_2, y) + T^2\,\mathrm{KL}(p_1 \| p_2)",
)
class DML(Method):
    """Student and peer learn together, each from the labels and from the other's current predictions.

    Neither is frozen and either may be the larger. Each has an optimizer of its own; the other's predictions are
    constants for it. The student is what is kept.

    Terms:
        ce: the student's cross-entropy with the labels.
        kl: KL divergence from the peer's to the student's probabilities.
        peer_ce: the peer's cross-entropy with the labels.
        peer_kl: KL divergence from the student's to the peer's probabilities.

    Deviations: the paper updates one model after the other, the second from the updated predictions of the first;
    here both read the predictions of one forward pass, as common implementations do.

    Args:
        temperature: divides both logits before the softmax; the divergence is multiplied by its square. 1 in
            the paper.
    """

    needs = Needs(student={"logits"}, peer={"logits"}, batch={"labels"})
    learners: ClassVar[tuple[str, ...]] = ("student", "peer")

    def __init__(self, *, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.weights = {"ce": 1.0, "kl": 1.0, "peer_ce": 1.0, "peer_kl": 1.0}

    def forward(self, batch: Batch, student: Signals, peer: Signals) -> Terms:
        """Returns the terms of both players."""
        assert student.logits is not None
        assert peer.logits is not None
        labels = batch["labels"]
        return {
            "ce": cross_entropy(student.logits, labels, reduction="none"),
            "kl": self._follow(student.logits, peer.logits),
            "peer_ce": cross_entropy(peer.logits, labels, reduction="none"),
            "peer_kl": self._follow(peer.logits, student.logits),
        }

    def _follow(self, logits: Tensor, other: Tensor) -> Tensor:
        return kl(logits, other, temperature=self.temperature, reduction="none")

    def players(self, learners: Mapping[str, nn.Module]) -> dict[str, tuple[list[nn.Parameter], frozenset[str] | None]]:
        """Returns two players: each model minimises its own terms."""
        terms = {"student": frozenset({"ce", "kl"}), "peer": frozenset({"peer_ce", "peer_kl"})}
        return {name: ([p for p in learners[name].parameters() if p.requires_grad], own) for name, own in terms.items()}
