"""Mistakes that other tools made between two tokenizers: none of them here."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.corpus import tokenizer
from language.tokenizers_made import byte_level, ours, sentencepiece_bpe
from limbeck.data.text.alignment import Aligned, Aligner
from limbeck.data.text.token_bytes import TokenBytes, token_map
from limbeck.functional.spans import NO_SPAN, common_spans, span_sums

TEXTS = (
    "It is a truth universally acknowledged.",
    "Zwölf Boxkämpfer, naïve café, 東京タワー.",
    "an emoji 👩‍👩‍👧 in the middle, and one at the end 🏳️‍🌈",
    "  two spaces,\ttabs\nand lines\n\n",
    "def add(a, b): return a + b",
    "é",
)


@cache
def side(kind: str) -> TokenBytes:
    made = {"bytes": tokenizer, "level": lambda: ours(byte_level()), "other": lambda: ours(byte_level(size=300)),
            "pieces": lambda: ours(sentencepiece_bpe())}  # fmt: skip
    return TokenBytes(made[kind]())


def byte_model(side: TokenBytes, ids: np.ndarray | list[int]) -> torch.Tensor:
    """What a model of bytes says of tokens: the sum over their bytes, so that every tokenisation agrees."""
    scores = torch.linspace(-6.0, -0.5, 256, dtype=torch.float64)
    told = [piece or b"" for piece in side.of(ids)]
    return torch.stack([scores[list(piece)].sum() if piece else torch.zeros((), dtype=torch.float64) for piece in told])


def aligned(text: str, student: str, teacher: str) -> tuple[np.ndarray, Aligned]:
    ids = np.array([*side(student).tokenizer.encode("x"), *side(student).tokenizer.encode(text)])
    return ids, Aligner(side(student), side(teacher)).align(ids, np.ones(len(ids), bool))


PAIRS = [("level", "bytes"), ("bytes", "level"), ("level", "other"), ("pieces", "level"), ("level", "pieces")]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("text", TEXTS)
def test_bug_36_both_tokenizations_of_one_byte_model_agree_on_every_span(text: str, student: str, teacher: str) -> None:
    """Elsewhere tokens are merged by their distributions, or by unshifted numbers, and not by the chain rule."""
    ids, found = aligned(text, student, teacher)
    assert found.count > 0
    spans = torch.from_numpy(found.spans).unsqueeze(0), torch.tensor(found.teacher_spans).unsqueeze(0)
    says = byte_model(side(student), ids), byte_model(side(teacher), found.teacher_ids)
    sums = [span_sums(values.unsqueeze(0), own, found.count) for values, own in zip(says, spans)]
    torch.testing.assert_close(sums[0], sums[1])
    assert (sums[0] < 0).any()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_bug_36_the_chain_rule_holds_for_any_two_ways_to_cut(data: st.DataObject) -> None:
    """The spans' log-probabilities add up to that of the text, which both sides give."""
    length = data.draw(st.integers(2, 20))
    scores = torch.linspace(-3.0, -0.1, length, dtype=torch.float64)
    ends = []
    for _ in range(2):
        inner = data.draw(st.sets(st.integers(1, length - 1)))
        ends.append(np.array([*sorted(inner), length]))
    spans = common_spans(*ends)
    sums = []
    for own, numbers in zip(ends, (spans.first, spans.second)):
        starts = [0, *own[:-1].tolist()]
        tokens = torch.stack([scores[a:b].sum() for a, b in zip(starts, own.tolist())])
        sums.append(span_sums(tokens.unsqueeze(0), torch.from_numpy(numbers).unsqueeze(0), length))
    torch.testing.assert_close(sums[0], sums[1])
    torch.testing.assert_close(sums[0].sum(), scores.sum())
    shared = set(ends[0].tolist()) & set(ends[1].tolist())
    assert int((sums[0] != 0).sum()) == len(shared)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@settings(deadline=None, max_examples=40)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), min_size=1, max_size=24))
def test_bug_37_what_is_compared_is_the_same_bytes(student: str, teacher: str, text: str) -> None:
    """Elsewhere one begin-of-sequence token or a character of several bytes shifts everything after it."""
    ids, found = aligned(text, student, teacher)
    for own, tokens, numbers in (
        (side(student), ids, found.spans.tolist()),
        (side(teacher), found.teacher_ids, found.teacher_spans),
    ):
        assert len(tokens) == len(numbers)
        told = own.of(tokens)
        said = {}
        for piece, number in zip(told, numbers):
            if number != NO_SPAN:
                said[number] = said.get(number, b"") + (piece or b"")
        assert set(said) == set(range(found.count))
        if own is side(student):
            first = said
    assert {n: piece.lstrip(b" ") for n, piece in first.items()} == {n: piece.lstrip(b" ") for n, piece in said.items()}


def test_bug_37_most_of_a_text_is_compared_with_and_without_begin_tokens() -> None:
    """Comparing nothing would be right as well, so this says how much must be."""
    for student, teacher in PAIRS:
        ids, found = aligned("It is a truth universally acknowledged, naïve 東京 🏳️‍🌈 café.", student, teacher)
        assert (found.spans >= 0).mean() > 0.7, (student, teacher)
        assert len(ids) > 5


@pytest.mark.parametrize(("student", "teacher"), [("pieces", "level"), ("pieces", "bytes"), ("level", "pieces")])
def test_bug_37_a_begin_token_that_one_side_has_leaves_everything_after_it_in_its_span(
    student: str, teacher: str
) -> None:
    """Elsewhere it counts as a token of the other side, and nothing after it is aligned."""
    own = side(student)
    ids = np.array([*own.tokenizer.encode("x"), *own.tokenizer.encode("It is a truth, naïve 東京 café.")])
    begun = np.array([own.tokenizer.bos_id, *ids])
    plain, after = (Aligner(own, side(teacher)).align(i, np.ones(len(i), bool)) for i in (ids, begun))
    assert after.count >= plain.count >= 5
    assert after.spans[0] == NO_SPAN
    # With a token before it the first one is predicted as well; all that was compared before still is.
    compared = [[t for t, n in zip(a.teacher_ids, a.teacher_spans) if n != NO_SPAN] for a in (plain, after)]
    assert compared[1][-len(compared[0]) :] == compared[0]
    assert (after.spans[1:] != NO_SPAN)[plain.spans != NO_SPAN].all()


def test_bug_38_tokens_are_the_same_where_their_bytes_are() -> None:
    """Elsewhere vocabularies are matched by raw strings, in which a space is one mark here and another there."""
    level, pieces = side("level"), side("pieces")
    found = token_map(level, pieces)
    assert len(found) == len(pieces.pieces)
    matched = [(theirs, int(mine)) for theirs, mine in enumerate(found) if mine >= 0]
    assert all(pieces.pieces[theirs] == level.pieces[mine] for theirs, mine in matched)
    names = [(pieces.tokenizer.backend.convert_ids_to_tokens(a), level.tokenizer.backend.convert_ids_to_tokens(b))
             for a, b in matched]  # fmt: skip
    spaced = [(a, b) for a, b in names if a.startswith("▁") and b.startswith("Ġ")]
    assert len(spaced) >= 5
    known = {piece for piece in level.pieces if piece}
    assert len(matched) >= len({piece for piece in pieces.pieces if piece and piece in known})
