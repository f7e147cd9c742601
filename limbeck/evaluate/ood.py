"""Out-of-distribution detection: whether a model is less sure of images that show none of its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from limbeck.data.load import Split, load_data
from limbeck.data.source import DataInfo, Source
from limbeck.data.subsets import limit
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.functional import detection
from limbeck.hyperparameters import Count


@evaluations.register(
    "ood",
    title="Out-of-distribution detection: telling the test images from those of a second data set",
    measures=(
        Measure("ood.auroc", "OOD AUROC", "fraction", "higher", "Chance that a test image is the surer of two."),
        Measure("ood.fpr95", "OOD FPR95", "fraction", "lower", "Foreign images let in where 95 % of test images are."),
    ),
)
def ood(
    subject: Subject,
    *,
    data: str | dict[str, Any] | None = None,
    split: Split = "test",
    samples: Count | None = None,
) -> Results:
    """Returns ``auroc`` and ``fpr95`` of the largest probability, and of ``max_logit`` and ``energy``.

    The second data set's images are brought to the size and the number of channels of the first's, bilinearly, and
    normalised like them. Its labels do not matter, but it must not show the model's classes. With images that differ
    from the first's in style the task is easy; say which data set when you tell the number.
    References: Hendrycks and Gimpel, arXiv 1610.02136 (largest probability); Hendrycks et al., arXiv 1911.11132
    (largest logit); Liu et al., arXiv 2010.03759 (energy).

    Args:
        subject: what is judged.
        data: the second data set, by name or as a mapping of ``name`` and options.
        split: its split.
        samples: at most so many of its images; all when absent.

    Raises:
        DataError: no second data set is given, it is the first one, or one of them holds no images.
        LimbeckError: the second data set is unknown or missing.
    """
    if data is None:
        raise DataError("name a second data set, for example `ood.data=digits`, or `{name: ood, data: digits}`")
    first = subject.source
    foreign = load_data(data, split=split)
    if foreign.info.name == first.info.name or foreign.info.part_of == first.info.name:
        raise DataError(f"'{foreign.info.name}' is the data that the model is judged on; name another one")
    if samples is not None:
        foreign = limit(foreign, samples)
    known, unknown = subject.predictions.logits, subject.predict(subject.shown(Resized(foreign, first.info))).logits
    results = {role: _judge(known[role], logits) for role, logits in unknown.items() if role in known}
    return {**results.pop("student"), "data": foreign.info.name, "samples": len(foreign), **results}


def _judge(known: Tensor, unknown: Tensor) -> Results:
    scores = {
        "": lambda logits: logits.log_softmax(1).amax(1),
        "max_logit": lambda logits: logits.amax(1),
        "energy": lambda logits: logits.logsumexp(1),
    }
    results: Results = {}
    for name, score in scores.items():
        ours, theirs = score(known.double()), score(unknown.double())
        found = {
            "auroc": detection.auroc(ours, theirs).item(),
            "fpr95": detection.false_positive_rate(ours, theirs, true_positive_rate=0.95).item(),
        }
        results.update({name: found} if name else found)
    return results


class Resized:
    """Images of one data set in the size and the channels of another, whose normalisation they get.

    Args:
        source: the images.
        like: what the other data set is.

    Raises:
        DataError: one of them is no data set of grey or colour images.
    """

    in_memory = False
    random = False

    def __init__(self, source: Source, like: DataInfo) -> None:
        for info in (source.info, like):
            if len(info.input_shape) != 3 or info.input_shape[0] not in (1, 3):
                raise DataError(f"'{info.name}' holds samples of shape {info.input_shape}, which are no images")
        self._source = source
        self.info = replace(like, name=source.info.name, part_of=source.info.part_of)
        self.random = source.random

    def __len__(self) -> int:
        return len(self._source)

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` as float32 in [0, 1], and zeros as ``labels``."""
        images = self._source.fetch(index, epoch)["inputs"]
        pixels = images.float() / 255 if not images.is_floating_point() else images.float()
        channels, rows, columns = self.info.input_shape
        if pixels.shape[1] != channels:
            grey = pixels if pixels.shape[1] == 1 else _luminance(pixels)
            pixels = grey.expand(-1, channels, -1, -1)
        if tuple(pixels.shape[2:]) != (rows, columns):
            pixels = nnf.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        return {"inputs": pixels.clamp(0, 1), "labels": torch.zeros(len(index), dtype=torch.int64)}

    def labels(self) -> Tensor | None:
        """Zeros: foreign images have none of the model's classes."""
        return torch.zeros(len(self), dtype=torch.int64)

    def content_hashes(self) -> np.ndarray:
        """Hashes of the images before they were resized."""
        return self._source.content_hashes()

    def fingerprint(self) -> str:
        """Fingerprint of the data set before it was resized."""
        return self._source.fingerprint()


def _luminance(pixels: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)
