"""What changes a batch before the models see it: batch in, batch out."""

from limbeck.transforms.base import Transform, build_transform, transforms

__all__ = ["Transform", "build_transform", "transforms"]
