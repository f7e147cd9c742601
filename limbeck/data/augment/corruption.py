"""A common corruption as an augmentation: for looking at what it does, and for training against it."""

from __future__ import annotations

from pydantic import Field, field_validator
from torch import Tensor

from limbeck.data.augment.base import Augmentation, augmentation
from limbeck.data.corruptions.base import Severity, check_shape, corrupt, corruptions
from limbeck.errors import LimbeckError


@augmentation("corruption")
class CommonCorruption(Augmentation):
    """One of the fifteen common corruptions, in one severity (Hendrycks and Dietterich, 2019).

    https://arxiv.org/abs/1903.12261. To train against the corruptions a model is judged on makes the judgement void.

    Args:
        kind: name of the corruption, such as ``fog``.
        severity: 1 to 5.
    """

    kind: str = Field()
    severity: Severity = 3

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        try:
            return corruptions[kind].name
        except LimbeckError as error:
            raise ValueError(str(error)) from None

    def draws(self, shape: tuple[int, ...]) -> int:
        """As many as the kind asks for."""
        check_shape(shape)
        return corruptions[self.kind].part.draws((shape[0], shape[1], shape[2]))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape itself; only small pictures can be corrupted."""
        check_shape(shape)
        return shape

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns corrupted pictures."""
        return corrupt(images, self.kind, self.severity, numbers)
