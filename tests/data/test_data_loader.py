"""The loader: same batches for any workers, ranks and start; neutral to the global generators."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import Loader, as_source, load_data
from limbeck.data.views import STATIC
from limbeck.errors import DataError, RecipeError
from limbeck.signals import Batch


def source_of(count=50, **info):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return as_source((images, torch.arange(count) % 5), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), **info)


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k2: v2 for k, v in value.items() for k2, v2 in flat(v, f"{prefix}/{k}").items()}
    return {prefix: value}


def same(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


FULL = {
    "augment": ["strong"],
    "views": {"weak": ["weak"], "plain": []},
    "role_views": {"teacher": [{"name": "resize", "size": 16}]},
}


def test_a_batch_holds_what_is_promised():
    source = source_of()
    batch = next(Loader(source, batch_size=16, seed=3, **FULL).epoch(2))
    assert isinstance(batch, Batch)
    assert set(batch) == {"inputs", "labels", "index", "epoch", "views", "teacher_inputs"}
    assert batch["inputs"].shape == (16, 3, 8, 8)
    assert batch["inputs"].dtype == torch.float32
    assert batch["index"].dtype == batch["labels"].dtype == torch.int64
    assert batch["epoch"] == 2
    assert batch["teacher_inputs"].shape == (16, 3, 16, 16)
    assert torch.equal(batch["labels"], source.labels()[batch["index"]])
    plain = (source.fetch(batch["index"].numpy(), 0)["inputs"].float() / 255 - 0.5) / 0.2
    torch.testing.assert_close(batch["views"]["plain"], plain, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_is_every_sample_once(count, batch_size, shuffle, drop_last, seed, epoch):
    if drop_last and count < batch_size:
        return
    loader = Loader(source_of(count), batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)
    batches = list(loader.epoch(epoch))
    assert len(batches) == loader.steps_per_epoch
    seen = torch.cat([b["index"] for b in batches]).tolist()
    assert len(set(seen)) == len(seen) == (count // batch_size * batch_size if drop_last else count)
    assert set(seen) <= set(range(count))
    assert seen == loader.order(epoch)[: len(seen)].tolist()
    if not shuffle:
        assert seen == sorted(seen)
    assert all(b.size == batch_size for b in batches[:-1])


def test_orders_differ_between_epochs_and_seeds():
    orders = [Loader(source_of(), batch_size=8, seed=s).order(e).tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6), st.integers(0, 5))
def test_starting_in_the_middle_continues_bit_exactly(start, epoch):
    loader = Loader(source_of(), batch_size=8, seed=4, **FULL)
    whole = list(loader.epoch(epoch))
    resumed = list(Loader(source_of(), batch_size=8, seed=4, **FULL).epoch(epoch, start_step=start))
    assert len(resumed) == len(whole) - start
    for one, other in zip(whole[start:], resumed):
        same(one, other)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_ranks_together_are_the_whole(world_size):
    whole = Loader(source_of(), batch_size=16, seed=1, drop_last=True, **FULL)
    ranks = [
        Loader(source_of(), batch_size=16, seed=1, drop_last=True, rank=r, world_size=world_size, **FULL)
        for r in range(world_size)
    ]
    assert all(r.steps_per_epoch == whole.steps_per_epoch for r in ranks)
    for batch, *parts in zip(whole.epoch(3), *(r.epoch(3) for r in ranks)):
        for key in ("inputs", "labels", "index", "teacher_inputs"):
            assert torch.equal(torch.cat([p[key] for p in parts]), batch[key])
        assert torch.equal(torch.cat([p["views"]["weak"] for p in parts]), batch["views"]["weak"])
        assert max(p.size for p in parts) - min(p.size for p in parts) <= 1


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(15):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    return load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(pictures, workers):
    alone = Loader(pictures, batch_size=7, seed=5, **FULL)
    helped = Loader(pictures, batch_size=7, seed=5, workers=workers, **FULL)
    for epoch, start in ((0, 0), (1, 2)):
        for one, other in zip(alone.epoch(epoch, start), helped.epoch(epoch, start), strict=True):
            same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_do_not_notice(pictures, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(Loader(pictures, batch_size=7, workers=workers, **FULL).epoch(0))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_workers_stop_when_the_epoch_is_left(pictures):
    batches = Loader(pictures, batch_size=4, workers=2).epoch(0)
    next(batches)
    batches.close()
    assert next(batches, None) is None


def test_any_sample_of_any_epoch_can_be_replayed():
    loader = Loader(source_of(), batch_size=8, seed=2, **FULL)
    for batch in loader.epoch(6):
        numbers = batch["index"].numpy()[::-1].copy()
        again = loader.batch(numbers, 6)
        assert torch.equal(again["inputs"], batch["inputs"].flip(0))
        assert torch.equal(again["views"]["weak"], batch["views"]["weak"].flip(0))


def test_views_of_a_cache_come_again():
    writer = Loader(source_of(), ["weak"], batch_size=8, seed=2)
    reader = Loader(source_of(), ["weak"], batch_size=10, seed=7, view_seed=2, view_epochs=3)
    for epoch in range(7):
        for batch in reader.epoch(epoch):
            assert batch["epoch"] == epoch
            assert torch.equal(batch["inputs"], writer.batch(batch["index"].numpy(), epoch % 3)["inputs"])
        assert reader.augmentation_key(epoch) == writer.augmentation_key(epoch % 3)
    assert reader.order(0).tolist() != writer.order(0).tolist()


def test_fingerprint_and_keys():
    loader = Loader(source_of(), **{**FULL, "batch_size": 8})
    same_inputs = Loader(source_of(), **{**FULL, "batch_size": 16, "seed": 9, "shuffle": False})
    assert loader.fingerprint() == same_inputs.fingerprint()
    prints = [
        loader.fingerprint(),
        loader.fingerprint("teacher"),
        loader.fingerprint(view="weak"),
        loader.fingerprint(view="plain"),
    ]
    assert len(set(prints)) == 4
    assert loader.fingerprint("student") == loader.fingerprint()
    assert Loader(source_of(49), **{**FULL, "batch_size": 8}).fingerprint() != loader.fingerprint()
    assert loader.augmentation_key(0) != loader.augmentation_key(1) != STATIC
    assert loader.augmentation_key(0) != same_inputs.augmentation_key(0)
    assert loader.augmentation_key(3, "teacher") == loader.augmentation_key(4, view="plain") == STATIC
    with pytest.raises(RecipeError, match="no view 'week'"):
        loader.augmentation_key(0, view="week")


def test_sample_keys_tell_copies_apart_only_where_their_views_differ():
    twins = as_source((torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64)))
    assert len(set(Loader(twins, batch_size=2).sample_keys())) == 1
    assert len(set(Loader(twins, ["weak"], batch_size=2).sample_keys())) == 6
    assert Loader(source_of(), batch_size=2).sample_keys().tolist() == source_of().content_hashes().tolist()


class Jittered(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, number):
        return torch.full((3, 8, 8), float(number)) + torch.rand(1), number % 2


def test_a_data_set_that_augments_by_itself_has_a_key_each_epoch():
    loader = Loader(as_source(Jittered()), batch_size=8)
    assert loader.augmentation_key(0) not in (STATIC, loader.augmentation_key(1))
    assert len(set(loader.sample_keys())) == 20
    again = Loader(as_source(Jittered()), batch_size=8, view_epochs=2)
    assert torch.equal(again.batch(np.arange(5), 0)["inputs"], again.batch(np.arange(5), 2)["inputs"])
    assert not torch.equal(again.batch(np.arange(5), 0)["inputs"], again.batch(np.arange(5), 1)["inputs"])


@pytest.mark.parametrize(
    ("count", "options", "error", "message"),
    [
        (10, {"batch_size": 0}, RecipeError, "batch_size = 0"),
        (10, {"batch_size": 16, "drop_last": True}, DataError, "fewer than one batch of 16"),
        (
            10,
            {"batch_size": 3, "world_size": 2},
            RecipeError,
            "a batch of 1 cannot .* over 2 processes; choose a batch_size",
        ),
        (10, {"batch_size": 5, "view_epochs": 0}, RecipeError, "view_epochs = 0"),
        (10, {"batch_size": 5, "augment": ["crpo"]}, RecipeError, "Did you mean 'crop'"),
        (
            10,
            {"batch_size": 5, "views": {"strong": [{"name": "crop", "size": 99}]}},
            RecipeError,
            "larger than the padded",
        ),
    ],
)
def test_what_is_refused(count, options, error, message):
    with pytest.raises(error, match=message):
        Loader(source_of(count), **options)
