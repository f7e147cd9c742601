from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from limbeck.errors import CacheError, RecipeError, UnknownNameError
from limbeck.teachers.cache.codecs import build_codec, codecs
from limbeck.teachers.cache.codecs.bits import pack, packed_bytes, unpack, width_of

quick = settings(max_examples=60, deadline=None)


def round_trip(codec, logits: torch.Tensor):
    columns = codec.encode(logits)
    described = codec.columns(logits.shape[-1])
    assert columns.keys() == described.keys()
    for name, column in described.items():
        assert columns[name].shape == (len(logits), *column.shape)
        assert columns[name].dtype == column.dtype
    return codec.decode(columns, logits.shape[-1])


@quick
@given(st.integers(1, 40), st.integers(1, 33), st.data())
def test_bits_come_back(width: int, count: int, data) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=2 * count, max_size=2 * count))
    array = np.array(numbers, dtype=np.int64).reshape(2, count)
    packed = pack(array, width)
    assert packed.shape == (2, packed_bytes(count, width))
    np.testing.assert_array_equal(unpack(packed, count, width), array)


@pytest.mark.parametrize("classes", [1, 2, 3, 255, 256, 257, 32767, 32768, 32769, 65536, 65537, 131072, 250000])
def test_every_class_number_fits(classes: int) -> None:
    extremes = np.array([[0, classes - 1, classes // 2]])
    np.testing.assert_array_equal(unpack(pack(extremes, width_of(classes)), 3, width_of(classes)), extremes)


@pytest.mark.parametrize("classes", [32769, 65537, 131072])
def test_class_numbers_beyond_sixteen_bits_survive(classes: int) -> None:
    logits = torch.zeros(2, classes)
    logits[0, classes - 1] = 9.0
    logits[1, 32768] = 9.0
    topk = round_trip(build_codec({"name": "topk", "k": 2}), logits).topk
    assert topk.indices[:, 0].tolist() == [classes - 1, 32768]


@st.composite
def logits_and_k(draw) -> tuple[torch.Tensor, int]:
    classes = draw(st.integers(1, 40))
    seed, scale = draw(st.integers(0, 10_000)), draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0, 1e3, 1e5]))
    k = draw(st.sampled_from(sorted({1, max(1, classes // 2), max(1, classes - 1), classes})))
    return torch.randn(4, classes, generator=torch.Generator().manual_seed(seed)) * scale, k


@quick
@given(logits_and_k())
def test_topk_is_the_distribution_within_half_precision(case: tuple[torch.Tensor, int]) -> None:
    logits, k = case
    signals = round_trip(build_codec({"name": "topk", "k": k}), logits)
    exact = logits.double().log_softmax(-1)
    topk = signals.topk
    np.testing.assert_array_equal(np.sort(topk.indices.numpy(), -1), np.sort(exact.topk(k).indices.numpy(), -1))
    kept = exact.gather(-1, topk.indices)
    # Half-precision spacing of a log-probability, twice: its rounding, and that of the sum it is normalised by.
    bound = 2.0**-11 * kept.abs().clamp(min=2.0**-14) + 2.0**-11 * 3
    lowest = kept.clamp(min=-65504)
    assert ((topk.logprobs - lowest).abs() <= bound).all()
    assert (topk.logprobs.diff(dim=-1) <= 0).all()
    total = topk.logprobs.double().exp().sum(-1) + topk.tail.double().exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    assert not torch.isnan(topk.logprobs).any()
    assert not torch.isnan(topk.tail).any()
    assert (topk.tail <= 1e-6).all()


@quick
@given(logits_and_k())
def test_tail_is_the_exact_rest(case: tuple[torch.Tensor, int]) -> None:
    logits, k = case
    topk = round_trip(build_codec({"name": "topk", "k": k}), logits).topk
    classes = logits.shape[-1]
    if k == classes:
        assert torch.isneginf(topk.tail).all()
        return
    exact = logits.double().log_softmax(-1).numpy()
    rest = np.sort(exact, -1)[:, : classes - k]
    expected = torch.from_numpy(np.maximum(logsumexp(rest, axis=-1), -65504))
    bound = 2.0**-11 * expected.abs().clamp(min=2.0**-14) + 2.0**-11 * 3
    assert ((topk.tail - expected).abs() <= bound).all()


@pytest.mark.parametrize(("classes", "k"), [(1, 1), (2, 2), (10, 10), (10, 9), (100, 1), (1000, 1000)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 1e4])
def test_rest_is_never_negative_nor_nan(classes: int, k: int, scale: float) -> None:
    signals = round_trip(build_codec({"name": "topk", "k": k}), torch.randn(8, classes) * scale)
    probabilities = signals.logits.double().exp()
    assert not torch.isnan(signals.logits).any()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(8).double(), atol=1e-5, rtol=0)
    assert (signals.topk.tail.exp() >= 0).all()


def test_small_probabilities_survive_that_half_precision_probabilities_lose() -> None:
    logits = torch.tensor([[30.0, 10.0, 5.0, 0.0]])
    topk = round_trip(build_codec({"name": "topk", "k": 3}), logits).topk
    assert np.float16(np.exp(-25.0)) == 0
    torch.testing.assert_close(topk.logprobs[0, 2], torch.tensor(-25.0), atol=0.02, rtol=0)


def test_classes_that_are_ruled_out_stay_ruled_out() -> None:
    logits = torch.tensor([[2.0, -torch.inf, 1.0, -torch.inf]])
    topk = round_trip(build_codec({"name": "topk", "k": 2}), logits).topk
    assert sorted(topk.indices[0].tolist()) == [0, 2]
    assert torch.isneginf(topk.tail).all()


def test_dense_logits_agree_with_the_full_ones() -> None:
    logits = torch.randn(16, 50) * 3
    full = round_trip(build_codec({"name": "topk", "k": 50}), logits)
    torch.testing.assert_close(full.logits, logits.log_softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 2.0**-11)])
def test_full(dtype: str, tolerance: float) -> None:
    logits = torch.randn(8, 10) * 7
    signals = round_trip(build_codec({"name": "full", "dtype": dtype}), logits)
    assert ((signals.logits - logits).abs() <= tolerance * logits.abs()).all()
    assert signals.logits.dtype == torch.float32
    assert signals.topk is None


def test_logits_too_large_for_half_precision_are_refused() -> None:
    with pytest.raises(CacheError, match=r"7e\+04 do not fit float16.*store float32"):
        build_codec({"name": "full", "dtype": "float16"}).encode(torch.tensor([[7e4, 0.0]]))


def test_bfloat16_logits() -> None:
    logits = torch.randn(8, 10).bfloat16()
    for name in ("full", "topk"):
        assert round_trip(build_codec(name), logits).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "topk", "k": 0}, "greater than or equal to 1"),
        ({"name": "topk", "depth": 3}, "depth"),
        ({"name": "full", "dtype": "float64"}, "dtype"),
        ({"k": 3}, "needs a name"),
    ],
)
def test_wrong_parameters_are_named(spec: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_codec(spec)


def test_unknown_codec_suggests() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'topk'"):
        build_codec("top_k")
    assert {"full", "topk"} <= set(codecs)


def test_more_kept_than_there_are() -> None:
    with pytest.raises(RecipeError, match="k = 11 is more than the 10 classes"):
        build_codec({"name": "topk", "k": 11}).columns(10)


def test_impossible_class_number_is_refused() -> None:
    codec = build_codec({"name": "topk", "k": 2})
    columns = codec.encode(torch.randn(3, 5))
    columns["indices"][:] = 0xFF
    with pytest.raises(CacheError, match="class 7 of only 5"):
        codec.decode(columns, 5)


@pytest.mark.parametrize(("classes", "k", "expected"), [(10, 10, 25), (10, 5, 15), (1000, 10, 35), (21841, 100, 390)])
def test_row_bytes(classes: int, k: int, expected: int) -> None:
    columns = build_codec({"name": "topk", "k": k}).columns(classes)
    assert sum(column.bytes for column in columns.values()) == expected
