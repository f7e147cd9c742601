"""HARD's augmentor: learns warps on which student and teacher disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck import streams
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.functional.affine_warp import WARP_PARAMETERS, reparameterised, warp, warp_matrices
from limbeck.functional.divergences import kl_of_log_probabilities, tempered_log_softmax
from limbeck.hyperparameters import Count, NonNegative, Positive
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch
from limbeck.transforms.adversarial import logits_of
from limbeck.transforms.base import ModelTransform, transform

_LIMITS = (0.3, 0.6, 0.6, 0.2, 0.3)
"""How far means and deviations may go, in the order of the warp's parameters."""
_FIRST_DEVIATION = -3.0


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


@transform(
    "hard",
    title="HARD: Hard Augmentations for Robust Distillation",
    authors="Arne F. Nix and Max F. Burg and Fabian H. Sinz",
    paper="2305.14890",
    year=2023,
)
class HardAugmentation(ModelTransform):
    """Adds ``hard_inputs``: the batch under affine warps that are trained to make student and teacher disagree.

    One normal distribution of rotation, shift, scale and shear serves all samples; its means and deviations are
    trained through both models, which are in eval mode and stay as they are. The teacher must be ``differentiable``.
    At every batch the augmentor takes one step and the student then learns from the new warps; with both thresholds
    it takes steps on the batch only while it has to, see ``lowest``.

    The paper's formulas could not be read; objective, thresholds and defaults are reconstructed from its abstract
    ("adversarial synthetic points of teacher-student disagreement", dynamic during training). Of its augmentors this
    is the affine one.

    Args:
        temperature: divides logits in the augmentor's objective.
        disagreement: weight of the divergence between teacher and student that it seeks.
        drift: weight of the divergence between the teacher's answers to plain and warped inputs that it avoids.
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
            raise RecipeError("transform 'hard': give lowest and highest together, and lowest not above highest")
        self.temperature, self.disagreement, self.drift = temperature, disagreement, drift
        self.lowest, self.highest, self.most_steps = lowest, highest, most_steps
        self.mean = torch.zeros(len(WARP_PARAMETERS), requires_grad=True)
        self.raw_deviation = torch.full_like(self.mean, _FIRST_DEVIATION, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.mean, self.raw_deviation], lr=lr)
        self.training_augmentor = True
        self.steps = 0

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with ``hard_inputs``.

        Raises:
            DataError: the inputs are no images.
            NeedsError: no gradient reaches the augmentor through the teacher.
        """
        inputs = batch["inputs"]
        if inputs.dim() != 4:
            raise DataError(f"hard warps images [batch, channels, height, width], not {tuple(inputs.shape)}")
        with evaluation_mode(*(getattr(observe, "model", None) for observe in self.observers.values())):
            clean = logits_of(self.observers["teacher"], batch, inputs)
            self._train(batch, clean)
            return Batch(batch, hard_inputs=self.augment(batch).detach())

    def augment(self, batch: Batch) -> Tensor:
        """Returns the warped inputs, with a graph to the augmentor where gradients are on."""
        inputs = batch["inputs"]
        index, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        numbers = streams.normal(self.seed, f"hard/{self.steps}", epoch, index, len(WARP_PARAMETERS))
        noise = torch.from_numpy(numbers).to(self.mean.dtype)
        matrices = warp_matrices(reparameterised(self.mean, self.raw_deviation, noise)).to(inputs.device)
        return warp(inputs, matrices, outside=self.pixel_scale.bounds(inputs)[0])

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
        warped = self.augment(batch)
        student, teacher = (logits_of(self.observers[role], batch, warped) for role in ("student", "teacher"))
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
                "hard trains its warps through the teacher; write `teacher: {..., differentiable: true}` in the roles"
            )
        found = torch.autograd.grad(loss, [self.mean, self.raw_deviation])
        self.mean.grad, self.raw_deviation.grad = found
        self.optimizer.step()
        limits = torch.tensor(_LIMITS)
        with torch.no_grad():
            self.mean.clamp_(-limits, limits)
            # softplus(r) = limit  <=>  r = log(exp(limit) - 1)
            self.raw_deviation.clamp_(max=limits.expm1().log())
        self.steps += 1
        return apart.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the distribution, its optimizer and the phase."""
        return {
            "mean": self.mean.detach().clone(),
            "raw_deviation": self.raw_deviation.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "training_augmentor": self.training_augmentor,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        with torch.no_grad():
            self.mean.copy_(state["mean"])
            self.raw_deviation.copy_(state["raw_deviation"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.training_augmentor, self.steps = bool(state["training_augmentor"]), int(state["steps"])
