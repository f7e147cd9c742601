from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caching import AUGMENT, BATCH, SAMPLES, cache_of, content, images, loader_of, source_of, teacher_of

from limbeck.data.loader import Loader
from limbeck.data.subsets import Subset
from limbeck.errors import CacheError
from limbeck.signals import Batch, Signals
from limbeck.teachers.cache import CachedTeacher, CacheReader, describe, verify
from limbeck.teachers.provider import Provider


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with every kind of signal; not to be changed."""
    folder = tmp_path_factory.mktemp("cache")
    cache_of(folder, codec="full", extras=["features.stem", "features.pooled"], extras_dtype="float32")
    return folder


def every_batch(loader: Loader, epochs: int) -> list[Batch]:
    return [batch for epoch in range(epochs) for batch in loader.epoch(epoch)]


def assert_same(cached: Signals, live: Signals, tolerance: float = 1e-6) -> None:
    assert cached.logits.dtype == torch.float32
    torch.testing.assert_close(cached.logits, live.logits, atol=tolerance * 10, rtol=tolerance)
    for group in cached.features:
        for mine, theirs in zip(cached.features[group], live.features[group], strict=True):
            torch.testing.assert_close(mine, theirs, atol=tolerance * 10, rtol=tolerance)


def test_cached_view_equals_live_view(cache: Path) -> None:
    """In another order, other batches and several epochs: cached is what the teacher says of these very inputs."""
    teacher = teacher_of()
    loader = loader_of(seed=99, view_seed=11, shuffle=True, batch_size=7)
    cached = CachedTeacher(cache, loader, teacher=teacher.model)
    assert isinstance(cached, Provider)
    for batch in every_batch(loader, 2):
        assert_same(cached(batch), teacher(batch))
    first, second = (loader.batch(np.arange(9), epoch) for epoch in (0, 1))
    assert not torch.allclose(cached(first).logits, cached(second).logits)
    assert set(cached(first).features) == {"stem", "pooled"}


def test_views_repeat_with_their_augmentation(cache: Path) -> None:
    loader = loader_of(view_epochs=2)
    cached, teacher = CachedTeacher(cache, loader), teacher_of()
    for batch in every_batch(loader, 5):
        assert_same(cached(batch), teacher(batch))


def test_an_epoch_beyond_the_views_is_refused(cache: Path) -> None:
    loader = loader_of()
    cached = CachedTeacher(cache, loader)
    with pytest.raises(CacheError, match=r"views of epochs 0 to 1, but not of epoch 2.*view_epochs"):
        cached(loader.batch(np.arange(3), 2))


def test_without_randomness_one_view_serves_every_epoch(tmp_path: Path) -> None:
    loader = loader_of(augment=())
    cache_of(tmp_path, loader=loader, codec="full", epochs=1)
    cached, teacher = CachedTeacher(tmp_path, loader), teacher_of()
    assert_same(cached(loader.batch(np.arange(5), 17)), teacher(loader.batch(np.arange(5), 0)))


@pytest.mark.parametrize("chosen", [np.arange(SAMPLES)[::-1].copy(), np.array([31, 2, 40])], ids=["reversed", "subset"])
def test_rows_are_found_by_content(tmp_path: Path, chosen: np.ndarray) -> None:
    cache_of(tmp_path, loader=loader_of(augment=()), codec="full", epochs=1)
    loader = Loader(Subset(source_of(), chosen), (), batch_size=BATCH)
    cached, teacher = CachedTeacher(tmp_path, loader), teacher_of()
    for batch in loader.epoch(0):
        assert_same(cached(batch), teacher(batch))


def test_random_views_of_renumbered_samples_are_refused(cache: Path) -> None:
    loader = Loader(Subset(source_of(), np.array([0, 1, 5, 7])), AUGMENT, batch_size=2, seed=11)
    with pytest.raises(CacheError, match=r"lacks samples \[2, 3\] of the 4.*depends on a sample's number"):
        CachedTeacher(cache, loader)


def test_a_sample_that_was_not_cached_is_named(tmp_path: Path) -> None:
    cache_of(tmp_path, loader=loader_of(augment=()), epochs=1)
    changed = images()
    changed[17, 0, 0, 0] ^= 1
    changed[44] = 0
    with pytest.raises(CacheError, match=r"lacks samples \[17, 44\] of the 50"):
        CachedTeacher(tmp_path, loader_of(changed, augment=()))
    with pytest.raises(CacheError, match=r"lacks samples \[0, 1, 2, 3, 4\] and 45 more"):
        CachedTeacher(tmp_path, loader_of(images(seed=8), augment=()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": ["flip"]}, "another augmentation of epoch 0"),
        ({"augment": [*reversed(AUGMENT)]}, "another augmentation of epoch 0"),
        ({"augment": ["flip", {"name": "crop", "padding": 2}]}, "another augmentation of epoch 0"),
        ({"augment": ()}, "another augmentation of epoch 0"),
        ({"seed": 12}, r"another augmentation of epoch 0.*\(seed 11 in the cache, 12 now\)"),
        ({"view_epochs": 1}, "another augmentation of epoch 1"),
        ({"augment": [*AUGMENT, {"name": "center_crop", "size": 6}]}, "another preprocessing"),
        ({"role_views": {"teacher": []}}, "another augmentation of epoch 0"),
    ],
)
def test_another_view_is_refused_with_both_values(cache: Path, options: dict[str, Any], words: str) -> None:
    loader = loader_of(**options)
    with pytest.raises(CacheError, match=words) as caught:
        CachedTeacher(cache, loader)
    header = CacheReader(cache).header
    held, asked = (
        ((header.preprocessing, loader.preprocessing("teacher")),)
        if "preprocessing" in words
        else [(h, loader.augmentation_key(e, "teacher")) for e, h in enumerate(header.views) if f"epoch {e}" in words]
    )[0]
    assert f"it holds {held}, now it is {asked}" in str(caught.value)


def test_another_normalisation_is_refused(tmp_path: Path) -> None:
    from limbeck.data import as_source

    def normalised(mean: float) -> Loader:
        pixels = images().float() / 255
        source = as_source((pixels, torch.arange(SAMPLES) % 5), mean=(mean,) * 3, std=(0.5,) * 3)
        return Loader(source, AUGMENT, batch_size=BATCH, seed=11, shuffle=False)

    cache_of(tmp_path, loader=normalised(0.5))
    CachedTeacher(tmp_path, normalised(0.5))
    with pytest.raises(CacheError, match=r"another preprocessing.*use the same resizing, cropping and normalisation"):
        CachedTeacher(tmp_path, normalised(0.4))


def test_another_teacher_is_refused(cache: Path) -> None:
    model = teacher_of().model
    CachedTeacher(cache, loader_of(), teacher=model)
    held, other = CacheReader(cache).header.teacher, teacher_of(seed=6)
    with pytest.raises(CacheError, match=f"another teacher: it holds {held}, now it is {other.fingerprint()}"):
        CachedTeacher(cache, loader_of(), teacher=other.model)
    model.stem[1].running_mean[0] += 1e-4
    with pytest.raises(CacheError, match="another teacher"):
        CachedTeacher(cache, loader_of(), teacher=model)


def test_further_views(tmp_path: Path) -> None:
    options: dict[str, Any] = {"augment": (), "views": {"strong": AUGMENT}}
    teacher = teacher_of(views=("strong",))
    extras = {"extras": ["features.pooled"], "extras_dtype": "float32"}
    cache_of(tmp_path, loader=loader_of(**options), teacher=teacher, codec="full", **extras)
    loader = loader_of(shuffle=True, **options)
    cached = CachedTeacher(tmp_path, loader)
    for batch in every_batch(loader, 2):
        mine, theirs = cached(batch), teacher(batch)
        assert_same(mine, theirs)
        torch.testing.assert_close(mine.views["strong"].logits, theirs.views["strong"].logits, atol=1e-5, rtol=1e-5)
        assert set(mine.views["strong"].features) == {"pooled"}
    with pytest.raises(
        CacheError, match=r"another augmentation of epoch 0: it holds static strong=\w+, now it is static"
    ):
        CachedTeacher(tmp_path, loader_of(augment=(), views={"strong": ["flip"]}))


def test_embedding_and_attentions(tmp_path: Path) -> None:
    class Attentive:
        def __call__(self, batch: Batch) -> Signals:
            x = batch["inputs"].flatten(1)
            maps = tuple(x[:, i : i + 8].reshape(-1, 2, 2, 2) for i in (0, 8))
            return Signals(logits=x[:, :5], embedding=x[:, :7], attentions=maps)

        def start(self) -> None: ...

        def finish(self) -> None: ...

        def fingerprint(self) -> str:
            return "attentive"

    cache_of(tmp_path, teacher=Attentive(), extras=["embedding", "attentions"], extras_dtype="float32", codec="full")
    batch = loader_of().batch(np.array([4, 4, 30]), 1)
    cached, live = CachedTeacher(tmp_path, loader_of())(batch), Attentive()(batch)
    assert torch.equal(cached.embedding, live.embedding)
    assert all(torch.equal(a, b) for a, b in zip(cached.attentions, live.attentions, strict=True))


def test_topk_logits_are_the_dense_distribution(tmp_path: Path) -> None:
    cache_of(tmp_path)
    signals = CachedTeacher(tmp_path, loader_of())(loader_of().batch(np.arange(20), 0))
    assert torch.equal(signals.logits, signals.topk.dense())
    torch.testing.assert_close(signals.logits.exp().sum(-1), torch.ones(20))


def read_everything(folder: Path) -> list[Signals]:
    cached = CachedTeacher(folder, loader_of())
    return [cached(batch) for batch in every_batch(loader_of(shuffle=True), 2)]


def read_until_refused(folder: Path) -> tuple[list[torch.Tensor], str]:
    """Returns the logits that a cache gave, batch by batch, and the error that ended it."""
    read: list[torch.Tensor] = []
    rows = np.random.RandomState(0).permutation(SAMPLES)
    try:
        reader = CacheReader(folder)
        for start in range(0, SAMPLES, 6):
            read.append(reader.read(0, rows[start : start + 6]).logits)
    except CacheError as error:
        return read, str(error)
    return read, ""


def test_one_flipped_bit_anywhere_is_refused_before_its_row_is_used(tmp_path: Path) -> None:
    cache_of(tmp_path / "good", epochs=1)
    truth, error = read_until_refused(tmp_path / "good")
    assert not error
    draw = random.Random(1)
    for name, raw in content(tmp_path / "good").items():
        size = len(raw)
        offsets = {*draw.sample(range(size), 400 if name == "cache.json" else 60), 0, 7, 8, size - 1}
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", bad)
        for offset in sorted(offsets):
            flipped = bytearray(raw)
            flipped[offset] ^= 1 << draw.randrange(8)
            (bad / name).write_bytes(flipped)
            read, error = read_until_refused(bad)
            assert "corrupt" in error or "not the header" in error, (name, offset)
            assert all(torch.equal(a, b) for a, b in zip(read, truth))
            with pytest.raises(CacheError):
                verify(bad)
        shutil.rmtree(bad)


@pytest.mark.parametrize("name", ["cache.json", "keys.safetensors", "view-0001/00003.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, name: str, part: float) -> None:
    cache_of(tmp_path)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(CacheError, match=name):
        read_everything(tmp_path)
    with pytest.raises(CacheError, match=name):
        verify(tmp_path)


@pytest.mark.parametrize("name", ["keys.safetensors", "view-0000/00001.safetensors"])
def test_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    cache_of(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CacheError, match=f"{name}.*No such file.*again: it rewrites what is broken"):
        read_everything(tmp_path)


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    cache_of(tmp_path)
    for name in ("view-0000/00001.safetensors", "view-0001/00000.safetensors"):
        raw = bytearray((tmp_path / name).read_bytes())
        raw[-1] ^= 1
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(CacheError) as caught:
        verify(tmp_path)
    assert [line.split("'")[1].removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()] == [
        "view-0000/00001.safetensors",
        "view-0001/00000.safetensors",
    ]


@pytest.mark.parametrize("other", ["another shard", "another cache", "no safetensors", "a huge head", "a pickle"])
def test_foreign_files_are_refused(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "cache"
    cache_of(folder)
    path = folder / "view-0000" / "00000.safetensors"
    if other == "another shard":
        shutil.copy(folder / "view-0001" / "00000.safetensors", path)
    elif other == "another cache":
        cache_of(tmp_path / "other", teacher=teacher_of(seed=6))
        shutil.copy(tmp_path / "other" / "view-0000" / "00000.safetensors", path)
    elif other == "no safetensors":
        path.write_bytes(b"\x89PNG\r\n" * 100)
    elif other == "a huge head":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    else:
        torch.save({"logits": torch.zeros(3)}, path)
    with pytest.raises(CacheError, match=r"view-0000/00000\.safetensors' is missing, corrupt or foreign"):
        read_everything(folder)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a cache header"),
        (b"\x00\xff\xfe", "not a cache header"),
        (b"[" * 100_000, "not a cache header"),
        (b"[]", "not the header of a teacher cache"),
        (b'{"format": "zip"}', "not the header of a teacher cache"),
        (b'{"format": "limbeck-cache", "version": 1}', "corrupt: its checksum"),
        (b'{"format": "limbeck-cache", "checksum": 7}', "corrupt: its checksum"),
    ],
)
def test_foreign_headers_are_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "cache.json").write_bytes(raw)
    for function in (CacheReader, verify, describe):
        with pytest.raises(CacheError, match=words):
            function(tmp_path)


def resigned(folder: Path, change: Any) -> None:
    """Rewrites the header with a right checksum, as somebody hostile or a later version would."""
    header = json.loads((folder / "cache.json").read_text())
    change(header)
    header["checksum"] = "0" * 32
    text = (json.dumps(header, indent=1) + "\n").encode()
    checksum = hashlib.blake2b(text, digest_size=16).hexdigest()
    (folder / "cache.json").write_bytes(text.replace(b"0" * 32, checksum.encode()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.update(version=2), "has format 2, but this limbeck reads format 1"),
        (lambda h: h.update(surprise=1), "malformed at 'surprise'"),
        (lambda h: h.update(samples=0), "malformed at 'samples'"),
        (lambda h: h.update(samples="50"), "malformed at 'samples'"),
        (lambda h: h.pop("teacher"), "malformed at 'teacher'"),
        (lambda h: h["shards"].pop(), "lists 7 of 8 shards"),
        (lambda h: h["shards"][0].update(file="/etc/passwd"), "malformed at 'shards.0.file'"),
        (lambda h: h.update(codec={"name": "pickle"}), "codec that this limbeck cannot read: unknown codec 'pickle'"),
        (lambda h: h.update(codec={"name": "topk", "k": 1000}), "k = 1000 is more than the 5 classes"),
        (lambda h: h.update(codec={"name": "topk", "k": 2}), "does not hold the rows that the header describes"),
        (lambda h: h.update(classes=2**40), "does not hold the rows that the header describes"),
        (lambda h: h.update(extras={"embedding": [[1 << 40, 1 << 40]]}), "does not hold the rows"),
        (lambda h: h.update(rows_per_block=1), "does not hold the rows that the header describes"),
        (lambda h: h.update(samples=10**12), "lists 8 of"),
    ],
)
def test_headers_that_were_meddled_with_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    cache_of(tmp_path)
    resigned(tmp_path, lambda header: None)
    read_everything(tmp_path)
    resigned(tmp_path, change)
    with pytest.raises(CacheError, match=words):
        read_everything(tmp_path)


def test_absent_and_unfinished(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no cache at '.*/none'; write one"):
        CacheReader(tmp_path / "none")
    with pytest.raises(CacheError, match=r"is no teacher cache: it has no cache\.json"):
        CacheReader(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CacheError, match="unfinished; run the command that writes it again"):
        CacheReader(tmp_path)
