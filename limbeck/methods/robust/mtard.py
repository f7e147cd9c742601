"""MTARD: a clean and a robust teacher, balanced while the student learns."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.balancing import relative_share, soft_divergence
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.methods.base import Method, Needs, Observers, Setup, register
from limbeck.methods.robust.attacked import ADVERSARIAL, ADVERSARIAL_INPUTS, observe_both, seen_by_all
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms

_MILESTONES = (215 / 300, 260 / 300, 285 / 300)
_DECAY = 0.1


@register(
    "mtard",
    title="Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation",
    authors="Shiji Zhao and Xizhe Wang and Xingxing Wei",
    paper="2306.16170",
    year=2024,
    family="robust",
    equation=r"L = w_r K_r + w_c K_c, \quad K = \tfrac1C \mathrm{KL}\big(p^T(\cdot / \tau) \,\|\, p^S\big),"
    r" \quad w_r \leftarrow w_r - \eta_w (w_r - g_r), \quad"
    r" \tau_r \leftarrow \tau_r - \eta_\tau \, \mathrm{sign}(H_r - H_c)",
)
class MTARD(Method):
    """A robust teacher is imitated on adversarial examples and a clean one on clean images.

    Two things are balanced at every step. The teacher that is less certain is sharpened, the other softened, until
    their entropies agree (B-MTARD). The loss that has shrunk less since the first step gets more weight. Labels serve
    the attack only; the transform ``pgd`` makes the examples.

    Terms:
        robust: KL divergence from the robust teacher's to the student's prediction on the adversarial example.
        clean: KL divergence from the clean teacher's to the student's prediction on the clean image.

    Divergences are means over classes, as the authors' are. Deviations: their code adds 1e-5 to the teacher's
    probabilities inside the logarithm, which biases the losses that are balanced; the default here does not, and
    ``log_eps=1e-5`` repeats it. The ratio of entropies is compared with 1 there and their difference with 0 here,
    which is the same for positive entropies and has no division.

    Args:
        weight_rate: how fast the weights follow the losses; 0 keeps them.
        temperature_rate: change of a temperature in one step; 0 keeps them at 1, as in the first version of the method.
        lowest_temperature: of a teacher.
        highest_temperature: of a teacher.
        robust_weight: weight of ``robust`` at the start; ``clean`` has the rest.
        loss_scale: multiplies both divergences; the authors use 1 for 10 and 10 for 100 classes.
        decay: whether both rates are divided by 10 after 72, 87 and 95 % of the run, as in the authors' schedule.
        log_eps: added to the teacher's probabilities in the logarithm.
    """

    needs = Needs(student={"logits"}, robust_teacher={"logits"}, clean_teacher={"logits"}, batch={ADVERSARIAL_INPUTS})
    batch_coupled = True

    def __init__(
        self,
        *,
        weight_rate: Fraction = 0.025,
        temperature_rate: NonNegative = 0.001,
        lowest_temperature: Positive = 1.0,
        highest_temperature: Positive = 10.0,
        robust_weight: Fraction = 0.5,
        loss_scale: Positive = 1.0,
        decay: bool = True,
        log_eps: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.weight_rate, self.temperature_rate = weight_rate, temperature_rate
        self.lowest, self.highest = lowest_temperature, highest_temperature
        self.loss_scale, self.decay, self.log_eps = loss_scale, decay, log_eps
        start = min(max(1.0, lowest_temperature), highest_temperature)
        for name, value in (
            ("robust_temperature", start),
            ("clean_temperature", start),
            ("share", robust_weight),
            ("first_robust", -1.0),
            ("first_clean", -1.0),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self._goal: float | None = None
        self._entropy_gap = 0.0
        self.weights = {"robust": _Balanced(self, of_robust=True), "clean": _Balanced(self, of_robust=False)}

    robust_temperature: Tensor
    clean_temperature: Tensor
    share: Tensor
    first_robust: Tensor
    first_clean: Tensor

    def robust_share(self, progress: Progress) -> float:
        """Returns the weight of ``robust``: where the last batch moves it, as long as that step is not done."""
        share = float(self.share)
        if self._goal is None:
            return share
        return min(max(share - self.weight_rate * self._slowed(progress) * (share - self._goal), 0.0), 1.0)

    def _slowed(self, progress: Progress) -> float:
        passed = sum(progress.fraction >= milestone for milestone in _MILESTONES)
        return _DECAY**passed if self.decay else 1.0

    def build(self, setup: Setup) -> None:
        """Checks that the robust teacher can be asked about images that nobody has seen before.

        Raises:
            NeedsError: it is a cache.
        """
        if setup.models and "robust_teacher" not in setup.models:
            raise NeedsError(
                "the robust teacher is asked about adversarial examples, which no cache holds; use a live model"
            )

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows each teacher its own images and the student both, in two passes."""
        attacked = seen_by_all(batch)
        return {
            "robust_teacher": observers["robust_teacher"](attacked),
            "clean_teacher": observers["clean_teacher"](batch),
            "student": observe_both("student", batch, observers),
        }

    def forward(self, batch: Batch, student: Signals, robust_teacher: Signals, clean_teacher: Signals) -> Terms:
        """Returns ``robust`` and ``clean``; while training, remembers what they mean for weights and temperatures."""
        robust, robust_entropy = self._compare(student.views[ADVERSARIAL], robust_teacher, self.robust_temperature)
        clean, clean_entropy = self._compare(student, clean_teacher, self.clean_temperature)
        if self.training and torch.is_grad_enabled():
            self._entropy_gap = float(robust_entropy.mean() - clean_entropy.mean())
            self._set_goal(float(robust.detach().mean()), float(clean.detach().mean()))
        return {"robust": robust, "clean": clean}

    def _compare(self, student: Signals, teacher: Signals, temperature: Tensor) -> tuple[Tensor, Tensor]:
        assert student.logits is not None
        assert teacher.logits is not None
        divergence, entropy = soft_divergence(
            student.logits, teacher.logits, temperature=float(temperature), log_eps=self.log_eps
        )
        return self.loss_scale * divergence, entropy

    def _set_goal(self, robust: float, clean: float) -> None:
        if float(self.first_robust) < 0:
            self.first_robust.fill_(robust)
            self.first_clean.fill_(clean)
        self._goal = relative_share(robust, clean, float(self.first_robust), float(self.first_clean))

    def after_step(self, progress: Progress) -> None:
        """Keeps the weights of the step, sharpens the less certain teacher and softens the other."""
        taken = replace(progress, step=max(progress.step - 1, 0))
        self.share.fill_(self.robust_share(taken))
        sign = (self._entropy_gap > 0) - (self._entropy_gap < 0)
        change = self.temperature_rate * self._slowed(taken) * sign
        self.robust_temperature.sub_(change).clamp_(self.lowest, self.highest)
        self.clean_temperature.add_(change).clamp_(self.lowest, self.highest)
        self._goal, self._entropy_gap = None, 0.0


class _Balanced:
    """The weight of one of the two terms, as the method's state says."""

    def __init__(self, method: MTARD, *, of_robust: bool) -> None:
        self._method, self._of_robust = method, of_robust

    def __call__(self, progress: Progress) -> float:
        share = self._method.robust_share(progress)
        return share if self._of_robust else 1.0 - share

    def __str__(self) -> str:
        start = float(self._method.share)
        return f"{start if self._of_robust else 1 - start:g} at first, then balanced by what is left to learn"
