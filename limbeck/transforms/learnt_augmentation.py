"""What HARD's augmentors have in common: an objective that is evaluated through both models, and phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck import streams
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.functional.divergences import kl_of_log_probabilities, tempered_log_softmax
from limbeck.hyperparameters import Count, NonNegative, Positive
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch
from limbeck.transforms.adversarial import logits_of
from limbeck.transforms.base import ModelTransform

FIRST_DEVIATION = -3.0
"""Where raw deviations begin: softplus of it is 0.05."""


def augmentor_loss(
    student: Tensor, teacher: Tensor, clean_teacher: Tensor, *, temperature: float, disagreement: float, drift: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""What the augmentor minimises: disagreement it wants, drift of the teacher it does not.

    .. math:: L_g = -(\lambda_s D - \lambda_t R), \quad
        D = T^2\,\mathrm{KL}(p^T(\tilde x) \| p^S(\tilde x)), \quad R = T^2\,\mathrm{KL}(p^T(x) \| p^T(\tilde x))

    Gradients flow through all logits of :math:`\tilde x`.

    Args:
        student: ``[B, C]`` student's logits on augmented inputs.
        teacher: ``[B, C]`` teacher's logits on augmented inputs.
        clean_teacher: ``[B, C]`` teacher's logits on the inputs as they are, a constant.
        temperature: divides all logits.
        disagreement: :math:`\lambda_s`.
        drift: :math:`\lambda_t`.

    Returns:
        The loss, :math:`D` and :math:`R`, means over the batch.
    """
    says = [tempered_log_softmax(logits, temperature) for logits in (student, teacher, clean_teacher.detach())]
    apart = temperature**2 * kl_of_log_probabilities(says[1], says[0]).mean()
    drifted = temperature**2 * kl_of_log_probabilities(says[2], says[1]).mean()
    return drift * drifted - disagreement * apart, apart, drifted


def augmentor_is_next(training_augmentor: bool, disagreement: float, lowest: float, highest: float) -> bool:
    """Whether the augmentor trains next: once it does, until it disagrees enough; else as soon as too little is left.

    Example:
        >>> augmentor_is_next(True, 0.7, 0.5, 2.0), augmentor_is_next(False, 0.7, 0.5, 2.0)
        (True, False)
    """
    return disagreement <= highest if training_augmentor else disagreement < lowest


class LearntAugmentation(ModelTransform):
    """Base of augmentors that are trained to make student and teacher disagree, in what they add as ``hard_inputs``.

    A subclass makes its leaf tensors in :meth:`begin`, and says in :meth:`augment` what becomes of a batch. At every
    batch it takes one step and the student then learns from the new images; with both thresholds it takes steps on a
    batch only while it has to.

    Args:
        temperature: divides logits in the objective.
        disagreement: weight of the divergence between teacher and student that it seeks.
        drift: weight of the divergence between the teacher's answers to plain and changed inputs that it avoids.
        lr: its learning rate, of Adam.
        lowest: with ``highest``: the augmentor rests until the disagreement falls below this.
        highest: and then trains until it exceeds this.
        most_steps: steps that it may take on one batch while it trains.
        seed: seed of the run.
        num_classes: number of classes.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"hard_inputs"})
    runs = ("student", "teacher")

    def __init__(
        self,
        *,
        temperature: Positive = 2.0,
        disagreement: NonNegative = 1.0,
        drift: NonNegative = 0.3,
        lr: Positive = 0.01,
        lowest: NonNegative | None = None,
        highest: NonNegative | None = None,
        most_steps: Count = 5,
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        if (lowest is None) != (highest is None) or (lowest is not None and highest is not None and lowest > highest):
            raise RecipeError("give lowest and highest of a learnt augmentation together, and lowest not above highest")
        self.temperature, self.disagreement, self.drift = temperature, disagreement, drift
        self.lowest, self.highest, self.most_steps = lowest, highest, most_steps
        self.training_augmentor = True
        self.steps = 0
        self.leaves = dict(self.begin())
        self.optimizer = torch.optim.Adam(list(self.leaves.values()), lr=lr)

    def begin(self) -> Mapping[str, Tensor]:
        """Makes the tensors that are trained, and returns them by name."""
        raise TypeError(f"{type(self).__name__} does not define begin()")

    def augment(self, batch: Batch) -> Tensor:
        """Returns the changed inputs, with a graph to the leaves where gradients are on."""
        raise TypeError(f"{type(self).__name__} does not define augment(batch)")

    def keep_in_range(self) -> None:
        """Brings the leaves back to where they may be, after a step and without gradients."""

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with ``hard_inputs``.

        Raises:
            DataError: the inputs are no images.
            NeedsError: no gradient reaches the augmentor through the teacher.
        """
        inputs = batch["inputs"]
        if inputs.dim() != 4:
            raise DataError(
                f"a learnt augmentation changes images [batch, channels, height, width], not {tuple(inputs.shape)}"
            )
        with evaluation_mode(*(getattr(observe, "model", None) for observe in self.observers.values())):
            clean = logits_of(self.observers["teacher"], batch, inputs)
            self._train(batch, clean)
            return Batch(batch, hard_inputs=self.augment(batch).detach())

    def noise(self, batch: Batch, width: int) -> Tensor:
        """Returns standard normal numbers ``[B, width]`` of this batch and step, the same in a replay."""
        index, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        return torch.from_numpy(streams.normal(self.seed, f"hard/{self.steps}", epoch, index, width)).float()

    def _train(self, batch: Batch, clean: Tensor) -> None:
        if self.lowest is None or self.highest is None:
            self._step(batch, clean)
            return
        with torch.no_grad():
            apart = self._judge(batch, clean)[1]
        for _ in range(self.most_steps):
            self.training_augmentor = augmentor_is_next(
                self.training_augmentor, float(apart), self.lowest, self.highest
            )
            if not self.training_augmentor:
                return
            apart = self._step(batch, clean)

    def _judge(self, batch: Batch, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        changed = self.augment(batch)
        student, teacher = (logits_of(self.observers[role], batch, changed) for role in ("student", "teacher"))
        return augmentor_loss(
            student, teacher, clean,
            temperature=self.temperature, disagreement=self.disagreement, drift=self.drift,
        )  # fmt: skip

    def _step(self, batch: Batch, clean: Tensor) -> Tensor:
        """Takes one step of the augmentor and returns the disagreement before it."""
        with torch.enable_grad():
            loss, apart, drifted = self._judge(batch, clean)
        if not drifted.requires_grad:
            raise NeedsError(
                "the augmentor is trained through the teacher; write `teacher: {..., differentiable: true}` in the "
                "roles"
            )
        leaves = list(self.leaves.values())
        for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves)):
            leaf.grad = slope
        self.optimizer.step()
        with torch.no_grad():
            self.keep_in_range()
        self.steps += 1
        return apart.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the leaves, their optimizer and the phase."""
        return {
            **{name: leaf.detach().clone() for name, leaf in self.leaves.items()},
            "optimizer": self.optimizer.state_dict(),
            "training_augmentor": self.training_augmentor,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(state[name])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.training_augmentor, self.steps = bool(state["training_augmentor"]), int(state["steps"])


def cap_deviation(raw: Tensor, limit: Tensor | float) -> None:
    """Keeps softplus of raw deviations at or below a limit."""
    # softplus(r) = limit  <=>  r = log(exp(limit) - 1)
    raw.clamp_(max=torch.as_tensor(limit).expm1().log())
