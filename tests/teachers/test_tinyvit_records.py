from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import CacheError
from limbeck.functional.classification import cross_entropy
from limbeck.functional.sparse_labels import sparse_cross_entropy, spread_rest
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Signals, as_term
from limbeck.teachers.cache.tinyvit_records import decode, encode, read_records, write_records

SEEDS = np.asarray([7, 2**31 - 1, 0, 12])


def _probabilities(classes: int = 9) -> Tensor:
    return torch.softmax(3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(1)), -1)


def test_records_come_back_as_half_precision_holds_them() -> None:
    probabilities = _probabilities()
    rows = encode(probabilities, SEEDS, k=3)
    assert rows.shape == (4, 16)
    read = decode(rows, k=3)
    assert read.seeds.tolist() == SEEDS.tolist()
    kept, indices = probabilities.topk(3)
    assert torch.equal(read.indices, indices)
    assert torch.equal(read.probabilities, kept.half().float())


def test_bytes_are_those_of_the_format() -> None:
    (row,) = encode(torch.tensor([[0.25, 0.5, 0.25]]), np.asarray([258]), k=1)
    assert row.tolist() == [2, 1, 0, 0, 1, 0, 0x00, 0x38]


def test_classes_beyond_the_range_of_int16_survive() -> None:
    probabilities = torch.full((1, 40_000), 1e-6)
    probabilities[0, 39_999] = 0.9
    assert decode(encode(probabilities, SEEDS[:1], k=1), k=1).indices.tolist() == [[39_999]]
    with pytest.raises(CacheError, match="16 bits"):
        encode(torch.zeros(1, 70_000), SEEDS[:1], k=1)


def test_the_first_of_a_repeated_key_counts(tmp_path: Path) -> None:
    probabilities = _probabilities()
    write_records(tmp_path, ["a", "b", "a", "c"], probabilities, SEEDS, k=3, epoch=2)
    keys, records = read_records(tmp_path, k=3, epoch=2)
    assert keys == ["a", "b", "c"]
    assert records.seeds.tolist() == SEEDS[[0, 1, 3]].tolist()
    assert (tmp_path / "logits_top3_epoch2" / "rank0-values.bin").stat().st_size == 3 * 16


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path, list("abcd"), _probabilities(), SEEDS, k=3, epoch=0)
    values = tmp_path / "logits_top3_epoch0" / "rank0-values.bin"
    with pytest.raises(CacheError, match="no records of epoch 1"):
        read_records(tmp_path, k=3, epoch=1)
    with pytest.raises(CacheError, match="another k"):
        decode(np.fromfile(values, np.uint8), k=4)
    content = values.read_bytes()
    values.write_bytes(content[:-1])
    with pytest.raises(CacheError, match="cut off"):
        read_records(tmp_path, k=3, epoch=0)
    values.write_bytes(content[:-16])
    with pytest.raises(CacheError, match=r"4 keys.*3 records"):
        read_records(tmp_path, k=3, epoch=0)


@pytest.mark.parametrize(
    ("keys", "seeds", "k"),
    [("abc", SEEDS, 3), (["a", "b\n", "c", "d"], SEEDS, 3), ("abcd", SEEDS - 1, 3), ("abcd", SEEDS, 10)],
)
def test_what_does_not_fit_the_format_is_refused(tmp_path: Path, keys: list[str], seeds: np.ndarray, k: int) -> None:
    with pytest.raises(CacheError):
        write_records(tmp_path, list(keys), _probabilities(), seeds, k=k, epoch=0)


@pytest.mark.parametrize("k", [1, 4, 8, 9])
def test_sparse_loss_is_that_of_the_dense_target(k: int) -> None:
    student, (kept, indices) = torch.randn(4, 9, dtype=torch.float64), _probabilities().double().topk(k)
    dense = spread_rest(indices, kept, 9)
    if k < 9:
        torch.testing.assert_close(dense.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(sparse_cross_entropy(student, indices, kept), cross_entropy(student, dense))


def test_a_rest_below_zero_counts_as_none_unless_asked_for() -> None:
    student, indices = torch.randn(1, 5, dtype=torch.float64), torch.tensor([[2, 0]])
    over = torch.tensor([[0.8, 0.201]], dtype=torch.float64)
    log_q = student.log_softmax(1)
    listed = -(0.8 * log_q[0, 2] + 0.201 * log_q[0, 0])
    torch.testing.assert_close(sparse_cross_entropy(student, indices, over), listed)
    rest = log_q[0, [1, 3, 4]].sum() * 0.001 / 3
    torch.testing.assert_close(sparse_cross_entropy(student, indices, over, clamp_rest=False), listed + rest)


def test_keeping_all_classes_is_learning_from_the_live_teacher() -> None:
    student, teacher = torch.randn(4, 9, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    said = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    batch = Batch(index=torch.arange(4))
    whole = cross_entropy(student, torch.softmax(teacher, 1))
    for k, tolerance in ((None, 1e-12), (8, 1e-12), (9, 1e-12)):
        loss = as_term(build_method("tinyvit", k=k)(batch, **said)["soft_ce"]).mean()
        torch.testing.assert_close(loss, whole, rtol=tolerance, atol=0)
    rounded = as_term(build_method("tinyvit", half_precision=True)(batch, **said)["soft_ce"]).mean()
    torch.testing.assert_close(rounded, whole, rtol=1e-3, atol=0)
    assert rounded != whole


def test_a_live_teacher_cut_to_k_equals_its_cache() -> None:
    from limbeck.teachers.cache.codecs import build_codec

    teacher, student = torch.randn(6, 9), torch.randn(6, 9)
    codec = build_codec({"name": "topk", "k": 4})
    cached = codec.decode(codec.encode(teacher), 9)
    batch, method = Batch(index=torch.arange(6)), build_method("tinyvit", k=4)
    live = as_term(method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))["soft_ce"]).values
    stored = build_method("tinyvit")(batch, student=Signals(logits=student), teacher=cached)
    torch.testing.assert_close(as_term(stored["soft_ce"]).values, live, rtol=2e-3, atol=2e-3)


def test_keys_keep_whatever_is_no_line_feed(tmp_path: Path) -> None:
    keys = ["a\u2028b.jpg", " c\r", "\x0bé"]
    write_records(tmp_path, keys, _probabilities()[:3], np.arange(3), k=2, epoch=0)
    assert read_records(tmp_path, k=2, epoch=0)[0] == keys
