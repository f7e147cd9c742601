"""A view of samples: augmented by counter-based random numbers, then normalised.

What a picture becomes depends on (seed, epoch, sample number) and the recipe of the view alone: not on which samples
share its batch, the number of workers, or when it is asked for. A view can so be replayed by anyone who knows these,
and nothing needs to be stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.data.augment.base import Entry, build_augmentations
from limbeck.data.pixel_scale import PixelScale
from limbeck.data.source import DataInfo

STATIC = "static"
"""The augmentation key of a view without randomness: every epoch sees the same."""

# Part of every key: raise it when the arithmetic of an augmentation changes, so that caches of older views are refused.
_VERSION = 1


class View:
    """Turns samples of a data set into the inputs of a model.

    Args:
        entries: augmentations as recipe entries, in order; none for evaluation.
        info: the data set's shape and normalisation.
        stream: name of the random stream; views of one name and recipe see the same crops and flips.
        normalize: subtract the mean and divide by the deviation, where the data set has them.

    Attributes:
        random: whether the view differs between epochs.
        input_shape: shape of one input.

    Raises:
        RecipeError: an augmentation is unknown, has a wrong option, or does not fit the samples' shape.

    Example:
        >>> view = View(["flip"], DataInfo("toy", 2, (1, 4, 4)))
        >>> images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
        >>> whole = view(images, np.arange(5), seed=0, epoch=3)
        >>> bool(torch.equal(whole[2:3], view(images[2:3], np.array([2]), seed=0, epoch=3)))
        True
    """

    def __init__(
        self, entries: Sequence[Entry], info: DataInfo, *, stream: str = "inputs", normalize: bool = True
    ) -> None:
        self._operations = build_augmentations(entries)
        self._stream = stream
        shape = info.input_shape
        self._draws = []
        for operation in self._operations:
            self._draws.append(operation.draws(shape))
            shape = operation.output_shape(shape)
        self.input_shape = shape
        self.random = any(self._draws)
        channels = info.input_shape[0]
        self._mean = torch.tensor(info.mean or (0.0,) * channels, dtype=torch.float32)
        self._normalisation = (info.mean, info.std) if normalize and info.mean else None
        self._std = torch.tensor(info.std or (1.0,) * channels, dtype=torch.float32)

    def __call__(self, inputs: Tensor, index: np.ndarray, *, seed: int, epoch: int) -> Tensor:
        """Returns float32 inputs.

        Args:
            inputs: ``[n, ...]`` samples as the data set gives them.
            index: ``[n]`` their numbers.
            seed: seed of the run.
            epoch: the epoch.
        """
        for position, (operation, draws) in enumerate(zip(self._operations, self._draws)):
            if not operation.takes_bytes():
                inputs = _as_floats(inputs)
            numbers = np.zeros((len(index), 0))
            if draws:
                numbers = streams.uniform(seed, self._purpose(position), epoch, index, draws)
            inputs = operation(inputs, torch.from_numpy(numbers), self._mean)
        return self._normalised(inputs)

    @property
    def pixel_scale(self) -> PixelScale:
        """How pixel values in [0, 1] become inputs."""
        return PixelScale(*self._normalisation) if self._normalisation is not None else PixelScale()

    def _purpose(self, position: int) -> str:
        return f"view/{self._stream}/{position}/{self._operations[position].name}"

    def _normalised(self, inputs: Tensor) -> Tensor:
        if self._normalisation is None:
            return _as_floats(inputs).contiguous()
        per_channel = (1, -1, *(1,) * (inputs.dim() - 2))
        mean, std = self._mean.view(per_channel), self._std.view(per_channel)
        if inputs.dtype == torch.uint8:
            return inputs.to(torch.float32).sub_(mean * 255).mul_(1 / (std * 255)).contiguous()
        return inputs.to(torch.float32).sub(mean).mul_(1 / std).contiguous()

    def recipe(self) -> str:
        """Returns everything that decides what the view computes, seed and epoch excepted, as canonical JSON."""
        facts = {
            "version": _VERSION,
            "stream": self._stream if self.random else "",
            "operations": [operation.options() for operation in self._operations],
            "normalise": self._normalisation,
        }
        return json.dumps(facts, sort_keys=True, separators=(",", ":"))

    def fingerprint(self) -> str:
        """Returns a hash of :meth:`recipe`."""
        return hashlib.blake2b(self.recipe().encode(), digest_size=16).hexdigest()

    def preprocessing(self) -> str:
        """Returns a hash of the parts of the recipe without randomness: resizing, cropping, normalisation."""
        fixed = [operation.options() for operation, draws in zip(self._operations, self._draws) if not draws]
        facts = {"version": _VERSION, "operations": fixed, "normalise": self._normalisation}
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def augmentation_key(self, seed: int, epoch: int) -> str:
        """Returns what tells the views of one sample apart: a hash of recipe, seed and epoch, or :data:`STATIC`."""
        if not self.random:
            return STATIC
        return hashlib.blake2b(f"{self.recipe()}/{seed}/{epoch}".encode(), digest_size=16).hexdigest()


def _as_floats(inputs: Tensor) -> Tensor:
    if inputs.dtype == torch.uint8:
        return inputs.to(torch.float32).div_(255)
    return inputs.to(torch.float32)
