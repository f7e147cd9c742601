"""Mixup and CutMix: every sample is blended with, or pasted over by, another one of its batch."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from limbeck import streams
from limbeck.errors import DataError
from limbeck.hyperparameters import Fraction, Positive
from limbeck.signals import Batch
from limbeck.transforms.base import Transform, transform


def label_probabilities(batch: Batch, num_classes: int, purpose: str) -> Tensor:
    """Returns the labels of a batch as class probabilities ``[B, C]``.

    Args:
        batch: its labels are class indices, or class probabilities already.
        num_classes: number of classes.
        purpose: which transform asks, for the message.

    Raises:
        DataError: the batch has no labels or only some, or the number of classes is not known.
    """
    labels = batch.get("labels")
    if labels is None or not num_classes:
        raise DataError(f"{purpose} mixes labels, but the data set gives none")
    if "labelled_mask" in batch:
        raise DataError(f"{purpose} mixes labels, but the data is labelled in part; remove the transform")
    return labels if labels.is_floating_point() else one_hot(labels, num_classes).to(torch.float32)


class _Mixing(Transform):
    """What mixup and CutMix share: partners, shares and mixed labels.

    ``labels`` become class probabilities ``[B, C]``. Every role sees the mixed inputs, which for distillation is what
    makes a teacher consistent with its student (Beyer et al., 2022, https://arxiv.org/abs/2106.05237). Further views
    and inputs of single roles are mixed alike, with the same partners and shares. A rank mixes within its own part of
    a batch, so runs with different numbers of processes differ.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"inputs", "labels", "views"})
    purpose: ClassVar[str] = ""

    def __init__(self, *, alpha: float, p: float, seed: int, num_classes: int) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.alpha = alpha
        self.p = p

    def __call__(self, batch: Batch) -> Batch:
        """Returns the mixed batch.

        Raises:
            DataError: the batch has no labels or only some, or the number of classes is not known.
        """
        probabilities = label_probabilities(batch, self.num_classes, self.purpose)
        numbers = batch["index"].cpu().numpy()
        epoch = int(batch.get("epoch", 0))
        # The first sample's number makes the batches of an epoch differ.
        purpose = f"{self.purpose}/{numbers[0]}"
        partner = torch.from_numpy(streams.permutation(self.seed, f"{purpose}/partner", epoch, len(numbers)))
        decision, *place = streams.uniform(self.seed, f"{purpose}/place", epoch, numbers[:1], 3)[0].tolist()
        share = beta(self.alpha, self.seed, purpose, epoch) if decision < self.p else 1.0
        mixed = Batch(batch)
        mixed["inputs"], kept = self.mix(batch["inputs"], partner, share, place)
        for key, value in batch.items():
            if key.endswith("_inputs"):
                mixed[key] = self.mix(value, partner, share, place)[0]
            elif key == "views":
                mixed[key] = {name: self.mix(view, partner, share, place)[0] for name, view in value.items()}
        mixed["labels"] = probabilities * kept + probabilities[partner] * (1 - kept)
        return mixed

    def mix(self, inputs: Tensor, partner: Tensor, share: float, place: list[float]) -> tuple[Tensor, float]:
        """Returns the mixed inputs, and the share of each sample that is its own."""
        raise TypeError(f"{type(self).__name__} does not define mix(inputs, partner, share, place)")


@transform(
    "mixup",
    title="mixup: Beyond Empirical Risk Minimization",
    authors="Hongyi Zhang and Moustapha Cisse and Yann N. Dauphin and David Lopez-Paz",
    paper="1710.09412",
    year=2018,
)
class Mixup(_Mixing):
    """Blends every sample with another one of its batch (Zhang et al., 2018, https://arxiv.org/abs/1710.09412).

    ``inputs = s * own + (1 - s) * partner`` with one ``s ~ Beta(alpha, alpha)`` for each batch, as in the authors'
    code; labels likewise.

    Args:
        alpha: both parameters of the Beta distribution.
        p: probability that a batch is mixed.
        seed: seed of the run.
        num_classes: number of classes.
    """

    purpose = "mixup"

    def __init__(self, *, alpha: Positive = 0.2, p: Fraction = 1.0, seed: int, num_classes: int) -> None:
        super().__init__(alpha=alpha, p=p, seed=seed, num_classes=num_classes)

    def mix(self, inputs: Tensor, partner: Tensor, share: float, place: list[float]) -> tuple[Tensor, float]:
        """Returns the blend and ``share``."""
        return inputs * share + inputs[partner] * (1 - share), share


@transform(
    "cutmix",
    title="CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    authors="Sangdoo Yun and Dongyoon Han and Seong Joon Oh and Sanghyuk Chun and Junsuk Choe and Youngjoon Yoo",
    paper="1905.04899",
    year=2019,
)
class CutMix(_Mixing):
    """Pastes a rectangle of another sample of the batch into every sample.

    Yun et al., 2019, https://arxiv.org/abs/1905.04899.

    The rectangle is the same for a batch, as in the authors' code: it has ``1 - s`` of the area, ``s ~ Beta(alpha,
    alpha)``, and a uniform centre, and is cut at the border. Labels are mixed by the area that was really pasted.

    Args:
        alpha: both parameters of the Beta distribution.
        p: probability that a batch is mixed.
        seed: seed of the run.
        num_classes: number of classes.
    """

    purpose = "cutmix"

    def __init__(self, *, alpha: Positive = 1.0, p: Fraction = 1.0, seed: int, num_classes: int) -> None:
        super().__init__(alpha=alpha, p=p, seed=seed, num_classes=num_classes)

    def mix(self, inputs: Tensor, partner: Tensor, share: float, place: list[float]) -> tuple[Tensor, float]:
        """Returns the pasted pictures and the part of their area that is their own.

        Raises:
            DataError: the inputs are no pictures.
        """
        if inputs.dim() != 4:
            raise DataError(
                f"cutmix needs images [batch, channels, height, width], but inputs have shape {tuple(inputs.shape)}"
            )
        rows, columns = inputs.shape[2:]
        top, bottom = _span(place[0], math.sqrt(1 - share), rows)
        left, right = _span(place[1], math.sqrt(1 - share), columns)
        mixed = inputs.clone()
        mixed[:, :, top:bottom, left:right] = inputs[partner, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (rows * columns)


def _span(centre: float, part: float, side: int) -> tuple[int, int]:
    length, middle = int(side * part), int(centre * side)
    return max(0, middle - length // 2), min(side, middle - length // 2 + length)


def beta(alpha: float, seed: int, purpose: str, epoch: int) -> float:
    """Returns a number from Beta(``alpha``, ``alpha``) that depends on (seed, purpose, epoch) alone."""
    first, second = (_log_gamma_variate(alpha, seed, f"{purpose}/gamma{i}", epoch) for i in (1, 2))
    # The logarithms keep small shapes apart where the variates themselves would underflow.
    return 1 / (1 + math.exp(min(second - first, 700.0)))


def _log_gamma_variate(shape: float, seed: int, purpose: str, epoch: int) -> float:
    """Returns the logarithm of a Gamma(``shape``, 1) variate, by the method of Marsaglia and Tsang (2000)."""
    d = shape + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    attempt = 0
    while True:
        u = streams.uniform(seed, purpose, epoch, np.asarray([attempt]), 4)[0].tolist()
        normal = math.sqrt(-2 * math.log(1 - u[0])) * math.cos(2 * math.pi * u[1])
        cube = (1 + c * normal) ** 3
        if cube > 0 and math.log(1 - u[2]) < 0.5 * normal**2 + d - d * cube + d * math.log(cube):
            # A variate of shape + 1, taken down to shape.
            return math.log(d * cube) + math.log(1 - u[3]) / shape
        attempt += 1
