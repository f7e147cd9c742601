"""Robustness to attacks: accuracy on the worst images that gradients find around the test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.data.pixel_scale import PixelScale
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.predictions import batches_of
from limbeck.functional.attacks import dlr, fgsm, margin, pgd, targeted_dlr
from limbeck.functional.auto_attack import apgd, random_start
from limbeck.functional.classification import cross_entropy
from limbeck.hyperparameters import Count, Positive
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch
from limbeck.tasks.base import Task
from limbeck.transforms.adversarial import check_pixels, sample_noise, signed

Attack = Literal["fgsm", "pgd", "cw", "apgd"]
_SEED = 0
_TARGETS = 9


@evaluations.register(
    "robustness_attacks",
    title="Accuracy under white-box attacks: FGSM, PGD, CW and, where asked for, APGD",
    measures=(
        Measure("robustness_attacks.fgsm", "FGSM", "fraction", "higher", "Accuracy after one step to the box's edge."),
        Measure("robustness_attacks.pgd", "PGD", "fraction", "higher", "Accuracy under projected gradient descent."),
        Measure("robustness_attacks.cw", "CW", "fraction", "higher", "Accuracy under PGD on the margin."),
        Measure("robustness_attacks.apgd", "APGD", "fraction", "higher", "Accuracy under APGD-CE, then APGD-DLR."),
        Measure(
            "robustness_attacks.weighted", "Weighted", "fraction", "higher", "Mean of clean accuracy and PGD accuracy."
        ),
    ),
)
def robustness_attacks(
    subject: Subject,
    *,
    eps: Positive = 8 / 255,
    step_size: Positive = 2 / 255,
    steps: Count = 20,
    samples: Count = 1000,
    attacks: tuple[Attack, ...] = ("fgsm", "pgd", "cw"),
    apgd_steps: Count | None = None,
    teacher: bool = True,
) -> Results:
    """Attacks the student, and the teacher where it is a live model, each with its own gradients.

    Args:
        subject: whom to judge.
        eps: largest change of a pixel, of values in [0, 1].
        step_size: change of a pixel in one step of PGD and CW.
        steps: steps of PGD and CW, which begin at a uniform point of the box.
        samples: the first so many test samples are attacked.
        attacks: ``fgsm``; ``pgd`` on the cross-entropy; ``cw``, PGD on the margin; ``apgd``, the gradient attacks of
            AutoAttack one after the other on what is left: APGD on the cross-entropy, then on the DLR loss towards
            each of the nine likeliest wrong classes (untargeted where there are three classes).
        apgd_steps: steps of each APGD run, 100 when None; a number adds ``apgd`` to the attacks.
        teacher: whether the teacher is attacked; it often takes longer than the student.

    Returns:
        ``clean`` and the accuracy under each attack on these ``samples``; with ``pgd`` also ``weighted``, the mean of
        ``clean`` and ``pgd``. Those of the teacher stand under ``teacher``.

    Raises:
        DataError: there is no test data, or its inputs are not pixel values.
    """
    if apgd_steps is not None and "apgd" not in attacks:
        attacks = (*attacks, "apgd")
    scale = getattr(subject.loader, "pixel_scale", PixelScale())
    judge = _Judge(subject.task, scale, eps, step_size, steps, apgd_steps or 100)
    batches = list(_first(subject, samples))
    results = judge(subject.student, batches, attacks)
    if teacher and isinstance(subject.teacher, nn.Module):
        results["teacher"] = judge(subject.teacher, batches, attacks)
    return {**results, "eps": eps, "samples": sum(batch.size for batch in batches)}


def _first(subject: Subject, samples: int) -> Iterator[Batch]:
    left = samples
    for batch in batches_of(subject.loader):
        if left <= 0:
            return
        rows = min(left, batch.size)
        left -= rows
        yield batch.map(lambda t, n=rows: t[:n]).to(subject.device)  # type: ignore[misc]
    if left == samples:
        raise DataError("the test data is empty; there is nothing to attack")


class _Judge:
    """How a model is attacked."""

    def __init__(
        self, task: Task, scale: PixelScale, eps: float, step_size: float, steps: int, apgd_steps: int
    ) -> None:
        self.task, self.scale, self.eps = task, scale, eps
        self.step_size, self.steps, self.apgd_steps = step_size, steps, apgd_steps

    def __call__(self, model: nn.Module, batches: list[Batch], attacks: tuple[Attack, ...]) -> Results:
        right: dict[str, list[Tensor]] = {name: [] for name in ("clean", *attacks)}
        with evaluation_mode(model):
            for batch in batches:
                check_pixels(batch["inputs"], self.scale)
                case = _Case(self, model, batch)
                right["clean"].append(case.resists(batch["inputs"]))
                for name in attacks:
                    right[name].append(getattr(case, name)())
        found: dict[str, Any] = {name: torch.cat(flags).double().mean().item() for name, flags in right.items()}
        return found | ({"weighted": (found["clean"] + found["pgd"]) / 2} if "pgd" in found else {})


class _Case:
    """A model and a batch under attack; every attack says which samples resist it."""

    def __init__(self, judge: _Judge, model: nn.Module, batch: Batch) -> None:
        self._judge, self._model, self._batch = judge, model, batch
        self.inputs, self.labels = batch["inputs"], batch["labels"]
        self._box: dict[str, Any] = {
            "eps": judge.scale.length(judge.eps, self.inputs),
            "bounds": judge.scale.bounds(self.inputs),
        }

    def classify(self, inputs: Tensor) -> Tensor:
        logits = self._judge.task.run(self._model, inputs).logits
        assert logits is not None
        return logits

    def resists(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self.classify(inputs).argmax(1) == self.labels

    def fgsm(self) -> Tensor:
        loss = partial(cross_entropy, labels=self.labels, reduction="none")
        return self.resists(fgsm(self.classify, loss, self.inputs, **self._box))

    def pgd(self) -> Tensor:
        return self._walk(cross_entropy)

    def cw(self) -> Tensor:
        return self._walk(margin)

    def _walk(self, loss: Callable[..., Tensor]) -> Tensor:
        noise = sample_noise(signed, _SEED, "attack", self._batch, self.inputs) * self._box["eps"]
        low, high = self._box["bounds"]
        found = pgd(
            self.classify,
            partial(loss, labels=self.labels, reduction="none"),
            self.inputs,
            step_size=self._judge.scale.length(self._judge.step_size, self.inputs),
            steps=self._judge.steps,
            start=(self.inputs + noise).clamp(low, high),
            **self._box,
        )
        return self.resists(found)

    def apgd(self) -> Tensor:
        """APGD-CE, then targeted APGD-DLR, each on the samples that are still right."""
        robust = self.resists(self.inputs)
        classes = self.classify(self.inputs[:1]).shape[1]
        self._break(robust, "ce", lambda logits, rows: cross_entropy(logits, self.labels[rows], reduction="none"))
        if classes == 3:
            self._break(robust, "dlr", lambda logits, rows: dlr(logits, self.labels[rows], reduction="none"))
        elif classes > 3:
            for rank in range(min(_TARGETS, classes - 1)):
                self._break(robust, f"target{rank}", partial(self._towards, rank=rank))
        return robust

    def _towards(self, logits: Tensor, rows: Tensor, rank: int) -> Tensor:
        return targeted_dlr(logits, self.labels[rows], self._likely[rows, rank], reduction="none")

    @cached_property
    def _likely(self) -> Tensor:
        """Wrong classes of each sample ``[B, C-1]``, the likeliest first."""
        with torch.no_grad():
            scores = self.classify(self.inputs).scatter(1, self.labels.unsqueeze(1), -torch.inf)
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :-1]

    def _break(self, robust: Tensor, name: str, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Attacks the samples that ``robust`` still names and takes from it those that fall."""
        rows = robust.nonzero().squeeze(1)
        if not len(rows):
            return
        part = self._batch.map(lambda t: t[rows])
        noise = sample_noise(signed, _SEED, f"attack/apgd/{name}", part, part["inputs"])
        found = apgd(
            self.classify,
            lambda logits, labels: loss(logits, rows),
            part["inputs"],
            part["labels"],
            steps=self._judge.apgd_steps,
            start=random_start(part["inputs"], noise, self._box["eps"]),
            **self._box,
        )
        robust[rows] = found.robust
