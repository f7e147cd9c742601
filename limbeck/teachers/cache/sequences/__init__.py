"""What a teacher said about every token that counts, on disk, found again by what a sequence holds."""

from limbeck.teachers.cache.sequences.codecs import SequenceCodec, build_sequence_codec, sequence_codecs
from limbeck.teachers.cache.sequences.header import SequenceHeader, read_sequence_header
from limbeck.teachers.cache.sequences.inspection import describe_sequences, verify_sequences
from limbeck.teachers.cache.sequences.provider import CachedSequences
from limbeck.teachers.cache.sequences.writer import write_sequences

__all__ = [
    "CachedSequences",
    "SequenceCodec",
    "SequenceHeader",
    "build_sequence_codec",
    "describe_sequences",
    "read_sequence_header",
    "sequence_codecs",
    "verify_sequences",
    "write_sequences",
]
