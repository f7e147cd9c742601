"""What changes a batch before the models see it: batch in, batch out."""

from limbeck.transforms.base import ModelTransform, Transform, build_transform, build_transforms, transforms

__all__ = ["ModelTransform", "Transform", "build_transform", "build_transforms", "transforms"]
