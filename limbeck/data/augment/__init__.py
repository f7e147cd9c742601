"""Augmentation: what is done to a picture, given random numbers. Vectorised over the batch; no state."""

from limbeck.data.augment.base import Augmentation, augmentation, augmentations, build_augmentations

__all__ = ["Augmentation", "augmentation", "augmentations", "build_augmentations"]
