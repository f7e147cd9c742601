from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from caching import BATCH, SAMPLES, cache_of, content, images, loader_of, source_of, teacher_of
from safetensors.numpy import load_file
from torch import nn

from limbeck.cli import main
from limbeck.errors import CacheError, NeedsError, RecipeError, TeacherChangedError
from limbeck.signals import Batch, Signals
from limbeck.tasks.classification import Classification
from limbeck.teachers.cache import CachedTeacher, describe, read_header, verify
from limbeck.teachers.live import FrozenTeacher

SHARDS_A_VIEW = -(-SAMPLES // 16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a cache that was written without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    cache_of(folder)
    return content(folder)


def test_what_lies_in_the_folder(whole: dict[str, bytes]) -> None:
    shards = [f"view-{v:04d}/{s:05d}.safetensors" for v in range(2) for s in range(SHARDS_A_VIEW)]
    assert sorted(whole) == sorted(["cache.json", "keys.safetensors", *shards])


def test_header_says_everything(whole: dict[str, bytes]) -> None:
    header = json.loads(whole["cache.json"])
    loader, teacher = loader_of(), teacher_of()
    assert header["teacher"] == teacher.fingerprint()
    assert header["data"] == loader.source.fingerprint()
    assert header["preprocessing"] == loader.preprocessing("teacher")
    assert header["views"] == [loader.augmentation_key(e, "teacher") for e in range(2)]
    assert header["codec"] == {"name": "topk", "k": 3}
    assert (header["samples"], header["classes"], header["seed"]) == (SAMPLES, 5, 11)
    assert len({entry["checksum"] for entry in header["shards"]}) == 2 * SHARDS_A_VIEW


def test_any_safetensors_reader_opens_a_shard(tmp_path: Path) -> None:
    cache_of(tmp_path, codec={"name": "full"}, extras=["features.pooled"])
    columns = load_file(tmp_path / "view-0000" / "00000.safetensors")
    assert columns["logits"].shape == (16, 5)
    assert columns["features.pooled.0"].dtype == np.float16
    keys = load_file(tmp_path / "keys.safetensors")["content"]
    np.testing.assert_array_equal(keys, loader_of().sample_keys("teacher"))


def test_writing_twice_gives_the_same_bytes_and_a_second_call_changes_nothing(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    cache_of(tmp_path / "cache")
    assert content(tmp_path / "cache") == whole
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")}
    cache_of(tmp_path / "cache")
    assert content(tmp_path / "cache") == whole
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")} == stamps


def test_a_continued_attempt_runs_the_teacher_on_what_is_missing_only(tmp_path: Path) -> None:
    cache_of(tmp_path)
    (tmp_path / "view-0001" / "00001.safetensors").unlink()
    seen: list[int] = []
    teacher = teacher_of()
    teacher.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    reported: list[tuple[int, int]] = []
    cache_of(tmp_path, teacher=teacher, progress=lambda done, total: reported.append((done, total)))
    assert seen == [2, BATCH, BATCH]
    assert reported == [(84, 100), (92, 100), (100, 100)]


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign", "remove"])
def test_broken_shards_are_written_again(tmp_path: Path, whole: dict[str, bytes], damage: str) -> None:
    cache_of(tmp_path)
    path = tmp_path / "view-0001" / "00002.safetensors"
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-5] ^= 4
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "foreign":
        path.write_bytes((tmp_path / "view-0000" / "00002.safetensors").read_bytes())
    else:
        path.unlink()
    with pytest.raises(CacheError, match=r"view-0001/00002\.safetensors"):
        verify(tmp_path)
    cache_of(tmp_path)
    assert content(tmp_path) == whole
    assert verify(tmp_path) == 2 * SAMPLES


def test_the_command_says_that_a_cache_is_whole_or_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_of(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["verify", str(tmp_path)])
    assert end.value.code in (None, 0)
    assert f"{SAMPLES} samples" in capsys.readouterr().out
    (tmp_path / "view-0001" / "00002.safetensors").unlink()
    with pytest.raises(SystemExit) as end:
        main(["verify", str(tmp_path)])
    assert end.value.code == 2
    assert "view-0001/00002.safetensors" in capsys.readouterr().err


def test_a_finished_cache_is_extended_by_views(tmp_path: Path, whole: dict[str, bytes]) -> None:
    cache_of(tmp_path, epochs=1)
    cache_of(tmp_path, epochs=2)
    assert content(tmp_path) == whole
    with pytest.raises(CacheError, match="2 views, more than the 1 asked for"):
        cache_of(tmp_path, epochs=1)


def test_without_randomness_there_is_one_view_for_all_epochs(tmp_path: Path) -> None:
    assert len(cache_of(tmp_path, loader=loader_of(augment=()), epochs=5).views) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": teacher_of(seed=6)}, "another teacher"),
        ({"loader": loader_of(augment=["flip"])}, "another augmentation"),
        ({"loader": loader_of(seed=12)}, "another seed"),
        ({"loader": loader_of(images(seed=9))}, "another data set"),
        ({"loader": loader_of(augment=["flip", {"name": "center_crop", "size": 6}])}, "another preprocessing"),
        ({"loader": loader_of(batch_size=4)}, "another batch size"),
        ({"codec": {"name": "topk", "k": 2}}, r"another codec: it holds .*'k': 3.*asked for is .*'k': 2"),
        ({"codec": "full"}, "another codec"),
        ({"extras": ["features.pooled"]}, "another set of further signals"),
        ({"rows_per_shard": 32}, "another number of rows a shard"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "begun"])
def test_another_cache_in_the_folder_is_refused_and_named(tmp_path: Path, change: dict, words: str, state: str) -> None:
    if state == "finished":
        cache_of(tmp_path)
    else:
        with pytest.raises(ZeroDivisionError):
            cache_of(tmp_path, progress=lambda done, _: 1 / (50 - done) if done == 50 else None)
        assert read_header(tmp_path, "plan.json").shards == []
    before = content(tmp_path)
    with pytest.raises(CacheError, match=words):
        cache_of(tmp_path, **change)
    assert content(tmp_path) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CacheError, match=r"holds other files \(thesis.txt\)"):
        cache_of(tmp_path)
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("options", [{"shuffle": True}, {"drop_last": True}, {"world_size": 2}])
def test_a_loader_in_another_order_is_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(CacheError, match="shuffle=False and drop_last=False"):
        cache_of(tmp_path, loader=loader_of(**options))


class Says:
    """A provider that passes what a function makes of the batch."""

    def __init__(self, say) -> None:
        self.say = say

    def __call__(self, batch: Batch) -> Signals:
        return self.say(batch)

    def start(self) -> None: ...

    def finish(self) -> None: ...

    def fingerprint(self) -> str:
        return "says"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_gives_no_number_is_refused_with_the_sample(tmp_path: Path, value: float) -> None:
    def say(batch: Batch) -> Signals:
        logits = torch.zeros(batch.size, 5)
        logits[batch["index"] == 21] = value
        return Signals(logits=logits)

    with pytest.raises(CacheError, match="logits are NaN or infinite for sample 21 in epoch 0"):
        cache_of(tmp_path, teacher=Says(say))


def test_features_that_are_not_finite_or_too_large(tmp_path: Path) -> None:
    def say(batch: Batch, worst: float) -> Signals:
        features = torch.zeros(batch.size, 2)
        features[batch["index"] == 9] = worst
        return Signals(logits=torch.zeros(batch.size, 5), features={"pooled": (features,)})

    for worst, words in ((torch.inf, "features.pooled are NaN or infinite for sample 9"), (1e6, "do not fit float16")):
        with pytest.raises(CacheError, match=words):
            cache_of(tmp_path / str(worst), teacher=Says(lambda b, w=worst: say(b, w)), extras=["features.pooled"])
    cache_of(tmp_path / "wide", teacher=Says(lambda b: say(b, 1e6)), extras=["features.pooled"], extras_dtype="float32")


def test_features_that_change_their_shape(tmp_path: Path) -> None:
    def say(batch: Batch) -> Signals:
        width = 3 if bool((batch["index"] > 30).any()) else 2
        return Signals(logits=torch.zeros(batch.size, 5), embedding=torch.zeros(batch.size, width))

    with pytest.raises(CacheError, match=r"'embedding\.0' change their shape"):
        cache_of(tmp_path, teacher=Says(say), extras=["embedding"])


def test_signals_that_the_teacher_lacks(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match=r"no 'features\.stages' to cache, but .*features\.pooled, features\.stem"):
        cache_of(tmp_path, extras=["features.stages"])
    with pytest.raises(NeedsError, match="gives none"):
        cache_of(tmp_path / "none", teacher=Says(lambda _: Signals()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"epochs": 0}, "epochs = 0"), ({"rows_per_shard": 3}, "one batch of 8"), ({"codec": "zip"}, "zip")],
)
def test_out_of_range(tmp_path: Path, wrong: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        cache_of(tmp_path, **wrong)


def test_what_a_changing_teacher_said_is_not_kept(tmp_path: Path, whole: dict[str, bytes]) -> None:
    teacher = teacher_of()

    def drift(done: int, _: int) -> None:
        if done == 32:
            with torch.no_grad():
                teacher.model.head.bias.add_(1)

    with pytest.raises(TeacherChangedError, match=r"head\.bias"):
        cache_of(tmp_path, teacher=teacher, progress=drift)
    assert not list(tmp_path.glob("view-*/*"))
    cache_of(tmp_path)
    assert content(tmp_path) == whole


def test_the_teacher_is_as_it_was(tmp_path: Path) -> None:
    teacher = teacher_of()
    teacher.model.train()
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    cache_of(tmp_path, teacher=teacher)
    assert teacher.model.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())


class Slides(torch.utils.data.Dataset):
    """A data set that is decoded sample by sample."""

    def __init__(self) -> None:
        self.images = images().float() / 255

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], index % 5


def test_workers_do_not_matter(tmp_path: Path) -> None:
    from limbeck.data import as_source
    from limbeck.data.loader import Loader

    for workers in (0, 2):
        loader = Loader(as_source(Slides()), ["flip"], batch_size=BATCH, seed=11, shuffle=False, workers=workers)
        cache_of(tmp_path / str(workers), loader=loader)
    assert content(tmp_path / "0") == content(tmp_path / "2")


def test_description(tmp_path: Path) -> None:
    cache_of(tmp_path, extras=["features.pooled"])
    text = describe(tmp_path)
    size = sum(len(raw) for raw in content(tmp_path).values())
    assert "50 samples in 2 augmented views (seed 11)" in text
    assert "topk (k = 3), and features.pooled in float16" in text
    assert f"{size / 100:.1f} bytes a sample and view" in text
    assert "\n" not in text


def test_bytes_stay_below_those_of_tinyvit(tmp_path: Path) -> None:
    """Everything counted: keys, header and checksums, for a single view."""
    inputs = torch.zeros(10_000, 1, 1, 1, dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 10))
    loader = loader_of(inputs, augment=(), batch_size=1000)
    for k in (5, 10):
        folder = tmp_path / str(k)
        teacher = FrozenTeacher("teacher", model, Classification())
        cache_of(folder, loader=loader, teacher=teacher, codec={"name": "topk", "k": k}, rows_per_shard=None)
        assert sum(len(raw) for raw in content(folder).values()) <= 10_000 * (4 + 4 * k)


def test_cached_ensemble(tmp_path: Path) -> None:
    from limbeck.teachers.ensemble import Ensemble

    plain = teacher_of(6)
    ensemble = Ensemble([FrozenTeacher("teacher", teacher_of(s).model, Classification()) for s in (1, 2)])
    cache_of(tmp_path, teacher=ensemble, codec="full")
    cached = CachedTeacher(tmp_path, loader_of(), teacher=ensemble.fingerprint())
    batch = loader_of().batch(np.arange(5), 1)
    torch.testing.assert_close(cached(batch).logits, ensemble(batch).logits, atol=1e-6, rtol=1e-6)
    mixed = Ensemble([cached, plain])(batch)
    expected = (cached(batch).logits.softmax(-1) + plain(batch).logits.softmax(-1)) / 2
    torch.testing.assert_close(mixed.logits.softmax(-1), expected)


def test_source_with_copies_of_a_sample(tmp_path: Path) -> None:
    twice = torch.cat([images(10), images(10)])
    assert len(source_of(twice)) == 20
    loader = loader_of(twice)
    cache_of(tmp_path, loader=loader, codec="full")
    cached, teacher = CachedTeacher(tmp_path, loader), teacher_of()
    batch = loader.batch(np.arange(20), 1)
    torch.testing.assert_close(cached(batch).logits, teacher(batch).logits, atol=1e-5, rtol=1e-5)
