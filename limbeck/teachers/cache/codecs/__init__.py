"""How a distribution over classes is stored. One codec is one file."""

from limbeck.teachers.cache.codecs.base import Codec, Column, build_codec, codecs

__all__ = ["Codec", "Column", "build_codec", "codecs"]
