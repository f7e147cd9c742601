"""What a teacher said about every sample, on disk: written once, verified, read instead of the teacher."""

from limbeck.teachers.cache.header import Header, read_header
from limbeck.teachers.cache.inspection import describe, verify
from limbeck.teachers.cache.provider import CachedTeacher
from limbeck.teachers.cache.reader import CacheReader
from limbeck.teachers.cache.writer import write_cache

__all__ = ["CacheReader", "CachedTeacher", "Header", "describe", "read_header", "verify", "write_cache"]
