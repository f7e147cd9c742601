"""TRADES: accuracy on clean images traded against stability around them."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl_of_log_probabilities, tempered_log_softmax
from limbeck.functional.reduction import widened
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Method, Needs, Observers, register
from limbeck.methods.robust.attacked import ADVERSARIAL, ADVERSARIAL_INPUTS, observe_both
from limbeck.signals import Batch, Signals, Terms


@register(
    "trades",
    title="Theoretically Principled Trade-off between Robustness and Accuracy",
    authors="Hongyang Zhang and Yaodong Yu and Jiantao Jiao and Eric P. Xing and Laurent El Ghaoui"
    " and Michael I. Jordan",
    paper="1901.08573",
    year=2019,
    family="robust",
    equation=r"L = -\log p^S_y(x) + \beta \max_{\|\tilde x - x\|_\infty \le \varepsilon}"
    r" \mathrm{KL}\big(p^S(x) \,\|\, p^S(\tilde x)\big)",
)
class TRADES(Method):
    """The student learns the labels of clean images and to say the same of the images around them.

    The transform ``pgd`` makes the examples; the paper's own has ``objective: prediction``.

    Terms:
        ce: cross-entropy of the clean image with its label.
        kl: KL divergence from the clean to the adversarial prediction; both sides learn, as in the authors' code.

    Deviations: none known.

    Args:
        beta: weight of ``kl``; the authors use 1 to 6.
    """

    needs = Needs(student={"logits"}, batch={"labels", ADVERSARIAL_INPUTS})

    def __init__(self, *, beta: NonNegative = 6.0) -> None:
        super().__init__()
        self.weights = {"ce": 1.0, "kl": beta}

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows the student the clean and the adversarial images, in two passes."""
        return {"student": observe_both("student", batch, observers)}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce`` and ``kl``."""
        assert student.logits is not None
        clean, attacked = _log_probabilities(student), _log_probabilities(student.views[ADVERSARIAL])
        return {
            "ce": cross_entropy(student.logits, batch["labels"], reduction="none"),
            "kl": kl_of_log_probabilities(clean, attacked),
        }


def _log_probabilities(signals: Signals) -> Tensor:
    assert signals.logits is not None
    return tempered_log_softmax(widened(signals.logits), 1.0)
