"""Adversarial examples of the student's own making, the inner maximisation of adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck import streams
from limbeck.data.pixel_scale import PixelScale
from limbeck.errors import DataError
from limbeck.functional.attacks import Objective, margin, pgd
from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Count, Positive
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch, Signals
from limbeck.transforms.base import ModelTransform, transform

_GAUSSIAN = 1e-3


@transform(
    "pgd",
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    authors="Aleksander Madry and Aleksandar Makelov and Ludwig Schmidt and Dimitris Tsipras and Adrian Vladu",
    paper="1706.06083",
    year=2018,
)
class PGDExamples(ModelTransform):
    """Adds ``adversarial_inputs``: the batch as projected gradient descent changes it against the current student.

    The student attacks itself in eval mode, so its batch normalisation uses running statistics and does not move, and
    no parameter collects a gradient. Lengths are in pixel values, whatever the normalisation.

    Args:
        eps: largest change of a pixel.
        step_size: change of a pixel in one step.
        steps: number of steps.
        start: where the search begins: ``gaussian`` adds noise of deviation 0.001, as TRADES and robust distillation
            do; ``uniform`` draws from the whole box; ``inputs`` begins at the image itself.
        objective: what grows: ``labels`` the cross-entropy with the labels; ``margin`` the lead of the best wrong
            class, as Carlini and Wagner's; ``prediction`` the divergence from the student's clean prediction, as in
            TRADES; ``teacher`` that from the teacher's clean prediction, as in RSLAD.
        seed: seed of the run.
        num_classes: number of classes.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"adversarial_inputs"})

    def __init__(
        self,
        *,
        eps: Positive = 8 / 255,
        step_size: Positive = 2 / 255,
        steps: Count = 10,
        start: Literal["gaussian", "uniform", "inputs"] = "gaussian",
        objective: Literal["labels", "margin", "prediction", "teacher"] = "labels",
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.eps, self.step_size, self.steps = eps, step_size, steps
        self.start, self.objective = start, objective
        if objective == "teacher":
            self.runs = ("student", "teacher")

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with ``adversarial_inputs``.

        Raises:
            DataError: inputs are not pixel values, or there are no labels to attack.
        """
        inputs = batch["inputs"]
        scale = self.pixel_scale
        check_pixels(inputs, scale)
        observe = self.observers["student"]
        with evaluation_mode(getattr(observe, "model", None)):
            found = pgd(
                lambda points: logits_of(observe, batch, points),
                self._objective(batch),
                inputs,
                eps=scale.length(self.eps, inputs),
                step_size=scale.length(self.step_size, inputs),
                steps=self.steps,
                start=inputs + self._noise(batch, inputs),
                bounds=scale.bounds(inputs),
            )
        return Batch(batch, adversarial_inputs=found)

    def _objective(self, batch: Batch) -> Objective:
        if self.objective == "prediction":
            clean = logits_of(self.observers["student"], batch, batch["inputs"])
            return lambda logits: kl(logits, clean, reduction="none")
        if self.objective == "teacher":
            soft = self.observers["teacher"](batch).logits
            assert soft is not None
            return lambda logits: kl(logits, soft, reduction="none")
        labels = batch.get("labels")
        if labels is None:
            raise DataError("pgd attacks the labels, but the data set gives none; use `objective: prediction`")
        if self.objective == "labels":
            return lambda logits: cross_entropy(logits, labels, reduction="none")
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        return lambda logits: margin(logits, classes, reduction="none")

    def _noise(self, batch: Batch, inputs: Tensor) -> Tensor | float:
        if self.start == "inputs":
            return 0.0
        draw, size = (streams.normal, _GAUSSIAN) if self.start == "gaussian" else (signed, self.eps)
        numbers = sample_noise(draw, self.seed, "pgd", batch, inputs)
        return numbers * self.pixel_scale.length(size, inputs)


def signed(*stream: Any) -> Any:
    """Returns uniform numbers in [-1, 1), with the arguments of :func:`limbeck.streams.uniform`."""
    return 2 * streams.uniform(*stream) - 1


def sample_noise(draw: Callable[..., Any], seed: int, purpose: str, batch: Batch, like: Tensor) -> Tensor:
    """Returns noise shaped like ``like`` ``[B, ...]`` that depends on (seed, purpose, epoch, sample) alone.

    Args:
        draw: a function of :mod:`limbeck.streams`.
        seed: seed of the run.
        purpose: name of the stream.
        batch: gives ``index`` and ``epoch``.
        like: shape, type and device of the result.
    """
    index = batch["index"].cpu().numpy()
    numbers = draw(seed, purpose, int(batch.get("epoch", 0)), index, like[0].numel())
    return torch.from_numpy(numbers).to(like.device, like.dtype).view_as(like)


def logits_of(observe: Callable[[Batch], Signals], batch: Batch, points: Tensor) -> Tensor:
    """Returns a role's logits on ``points`` in place of the batch's inputs."""
    kept = {key: value for key, value in batch.items() if not key.endswith("_inputs")}
    logits = observe(Batch(kept, inputs=points)).logits
    assert logits is not None
    return logits


def check_pixels(inputs: Any, scale: PixelScale) -> None:
    """Refuses inputs that are not pixel values in [0, 1], normalised or not.

    Raises:
        DataError: says what to do.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise DataError("attacks change pixel values, but the inputs are no float tensor")
    if not scale.fits(inputs):
        raise DataError(
            "attacks need to know the range of the inputs: scale them to [0, 1], or load the data by its name, so that "
            "its normalisation is known"
        )
