"""HARD: distillation on augmentations that are learnt to be hard."""

from __future__ import annotations

from dataclasses import replace

from limbeck.errors import NeedsError
from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import Method, Needs, Observers, Setup, register
from limbeck.signals import Batch, Signals, Terms

HARD_INPUTS = "hard_inputs"
_HARD = "hard"


@register(
    "hard",
    title="HARD: Hard Augmentations for Robust Distillation",
    authors="Arne F. Nix and Max F. Burg and Fabian H. Sinz",
    paper="2305.14890",
    year=2023,
    family="logit",
    equation=r"L = w\,T^2\,\mathrm{KL}\big(p^T(\tilde x) \| p^S(\tilde x)\big)"
    r" + (1-w)\,T^2\,\mathrm{KL}\big(p^T(x) \| p^S(x)\big)",
)
class HARD(Method):
    """The student follows the teacher on the data and on inputs that were warped until both disagreed.

    The transform ``hard`` learns the warps; any transform that adds ``hard_inputs`` will do. No label is used.

    Terms:
        hard: KL divergence on the augmented inputs.
        kd: KL divergence on the inputs as they are.

    Deviations: the paper's formulas could not be read; these are reconstructed from its abstract.

    Args:
        temperature: divides both logits before the softmax; the divergences are multiplied by its square.
        share: weight of ``hard``; ``kd`` has the rest.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={HARD_INPUTS})
    semi_supervised = True

    def __init__(self, *, temperature: Positive = 2.0, share: Fraction = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.weights = {"hard": share, "kd": 1.0 - share}

    def build(self, setup: Setup) -> None:
        """Checks that the teacher can be asked about inputs that nobody has seen before.

        Raises:
            NeedsError: it is a cache.
        """
        if setup.models and "teacher" not in setup.models:
            raise NeedsError("the teacher is asked about augmented inputs, which no cache holds; use a live model")

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows both models the inputs and their augmentations."""
        kept = {key: value for key, value in batch.items() if not key.endswith("_inputs")}
        augmented = Batch(kept, inputs=batch[HARD_INPUTS])
        return {
            role: replace(observers[role](batch), views={_HARD: observers[role](augmented)})
            for role in ("teacher", "student")
        }

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``hard`` and ``kd``."""
        pairs = {"hard": (student.views[_HARD], teacher.views[_HARD]), "kd": (student, teacher)}
        terms: Terms = {}
        for name, (ours, theirs) in pairs.items():
            assert ours.logits is not None
            assert theirs.logits is not None
            terms[name] = kl(ours.logits, theirs.logits, temperature=self.temperature, reduction="none")
        return terms
