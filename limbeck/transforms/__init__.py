"""Batch -> batch. One transform is one file."""

from limbeck.transforms.base import build_transform, transforms

__all__ = ["build_transform", "transforms"]
