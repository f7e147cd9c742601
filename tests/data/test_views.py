"""Views: a function of (seed, epoch, sample number) alone, and what tells them apart."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import streams
from limbeck.data import DataInfo, View
from limbeck.data.augment import augmentations
from limbeck.data.views import STATIC
from limbeck.errors import RecipeError

INFO = DataInfo("toy", 3, (3, 12, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
IMAGES = torch.randint(0, 256, (40, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NUMBERS = np.arange(40)
REQUIRED = {"resize": {"size": 7}, "center_crop": {"size": 7}, "resized_crop": {"size": 9}}
# Corruptions are made for square images of another size; tests/data/test_corruptions.py has them.
RECIPES = {name: [{"name": name, **REQUIRED.get(name, {})}] for name in augmentations if name != "corruption"}
# Stronger than the defaults, so that nothing passes by doing nothing.
RECIPES["color_jitter"] = [
    {"name": "color_jitter", "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.3, "p": 0.8}
]
RECIPES["affine"] = [{"name": "affine", "degrees": 30, "translate": 0.2, "scale": [0.8, 1.2], "shear": 0.3}]
RECIPES["strong"] = ["strong", {"name": "noise"}]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@settings(max_examples=8, deadline=None)
@given(st.permutations(range(40)), st.lists(st.integers(1, 39), max_size=6), st.integers(0, 2**40), st.integers(0, 500))
def test_a_view_does_not_depend_on_its_batch(recipe, order, cuts, seed, epoch):
    view = View(recipe, INFO)
    whole = view(IMAGES, NUMBERS, seed=seed, epoch=epoch)
    order = np.array(order)
    for part in np.split(order, sorted(set(cuts))):
        found = view(IMAGES[part], part, seed=seed, epoch=epoch)
        assert torch.equal(found, whole[part])


@pytest.mark.parametrize("recipe", [r for n, r in RECIPES.items() if View(r, INFO).random], ids=str)
def test_seeds_and_epochs_give_other_views(recipe):
    view = View(recipe, INFO)
    first = view(IMAGES, NUMBERS, seed=0, epoch=0)
    for seed, epoch in ((0, 1), (1, 0)):
        other = view(IMAGES, NUMBERS, seed=seed, epoch=epoch)
        assert (other != first).flatten(1).any(1).float().mean() > 0.2


def test_numbers_are_those_of_the_streams():
    """The definition of a view, written out: anyone can replay it from (seed, epoch, number)."""
    view = View([{"name": "crop", "padding": 2}, {"name": "flip"}], INFO, normalize=False)
    found = view(IMAGES, NUMBERS, seed=11, epoch=7)
    for number in (0, 17, 39):
        place = streams.uniform(11, "view/inputs/0/crop", 7, np.array([number]), 2)[0]
        mirror = streams.uniform(11, "view/inputs/1/flip", 7, np.array([number]), 1)[0, 0]
        canvas = np.zeros((3, 16, 14), np.uint8)
        canvas[:, 2:14, 2:12] = IMAGES[number].numpy()
        top, left = int(place[0] * 5), int(place[1] * 5)
        picture = canvas[:, top : top + 12, left : left + 10]
        picture = picture[:, :, ::-1] if mirror < 0.5 else picture
        assert np.array_equal(found[number].numpy(), (picture / np.float32(255)).astype(np.float32))


@pytest.mark.parametrize("recipe", [[], ["cutout"]])
def test_normalisation(recipe):
    found = View(recipe, INFO)(IMAGES, NUMBERS, seed=0, epoch=0)
    expected = (IMAGES.double() / 255 - torch.tensor(INFO.mean).view(3, 1, 1)) / torch.tensor(INFO.std).view(3, 1, 1)
    hidden = found.abs().amax(1, keepdim=True) < 1e-6
    assert bool(hidden.any()) == bool(recipe)
    torch.testing.assert_close(
        torch.where(hidden, 0, found.double()), torch.where(hidden, 0, expected), atol=1e-5, rtol=0
    )
    assert found.dtype == torch.float32
    assert found.is_contiguous()


def test_inputs_without_statistics_stay_as_they_are():
    info = DataInfo("vectors", 2, (5,))
    values = torch.randn(40, 5, dtype=torch.float64)
    assert torch.equal(View([], info)(values, NUMBERS, seed=0, epoch=0), values.float())
    assert torch.equal(View([], INFO, normalize=False)(IMAGES, NUMBERS, seed=0, epoch=0), IMAGES.float() / 255)
    noisy = View([{"name": "noise", "std": 0.1}], info)(values, NUMBERS, seed=0, epoch=0)
    assert 0.05 < float((noisy - values.float()).std()) < 0.15


def test_streams_separate_views_and_join_roles():
    recipe = ["crop", "flip"]
    default, same, strong = View(recipe, INFO), View(recipe, INFO), View(recipe, INFO, stream="view/strong")
    larger = View([*recipe, {"name": "resize", "size": 24}], INFO)
    seen = [v(IMAGES, NUMBERS, seed=0, epoch=0) for v in (default, same, strong, larger)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert seen[3].shape == (40, 3, 24, 24)
    resized = torch.nn.functional.interpolate(seen[0], (24, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[3], resized, atol=1e-4, rtol=0)


def test_two_of_the_same_kind_draw_apart():
    twice = View(["flip", "flip"], INFO)(IMAGES, NUMBERS, seed=0, epoch=0)
    once = View([], INFO)(IMAGES, NUMBERS, seed=0, epoch=0)
    assert 0.2 < (twice != once).flatten(1).any(1).float().mean() < 0.8


def test_keys_tell_apart_what_differs():
    base = {"entries": ["crop", "flip"], "info": INFO, "seed": 0, "epoch": 0, "stream": "inputs"}
    changes = [
        {},
        {"entries": ["flip", "crop"]},
        {"entries": [{"name": "crop", "padding": 3}, "flip"]},
        {"info": DataInfo("toy", 3, (3, 12, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.31))},
        {"seed": 1},
        {"epoch": 1},
        {"stream": "view/strong"},
    ]
    keys = set()
    for change in changes:
        values = {**base, **change}
        view = View(values["entries"], values["info"], stream=values["stream"])
        keys.add(view.augmentation_key(values["seed"], values["epoch"]))
    assert len(keys) == len(changes)
    written_out = [{"name": "crop", "padding": 4.0, "size": None, "fill": "black"}, {"name": "flip", "p": 0.5}]
    assert View(written_out, INFO).augmentation_key(0, 0) == View(["crop", "flip"], INFO).augmentation_key(0, 0)


def test_without_randomness_the_key_is_constant_but_the_fingerprint_is_not():
    plain, small = View([], INFO), View([{"name": "resize", "size": 6}], INFO)
    assert plain.augmentation_key(0, 0) == small.augmentation_key(3, 9) == STATIC
    assert not plain.random
    assert plain.fingerprint() != small.fingerprint() != View([], INFO, normalize=False).fingerprint()
    assert json.loads(plain.recipe())["operations"] == []


def test_keys_and_views_are_the_same_on_every_machine():
    """A cache written yesterday must be found again: change these values only together with the views' version."""
    assert View(["strong"], INFO).augmentation_key(5, 6) == "fe48af0d9048be457e353a8397ed5f0c"
    images = (torch.arange(40 * 360) * 37 % 256).to(torch.uint8).view(40, 3, 12, 10)
    seen = View(["crop", "flip"], INFO, normalize=False)(images, NUMBERS, seed=5, epoch=6)
    assert hashlib.sha256((seen * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()[:16] == "3bd3a53e423e3d69"


def test_shapes_are_followed_through_the_recipe():
    view = View([{"name": "resize", "size": [20, 18]}, {"name": "crop", "size": 16, "padding": 0}], INFO)
    assert view.input_shape == (3, 16, 16)
    with pytest.raises(RecipeError, match="larger than the image, 12x10"):
        View([{"name": "center_crop", "size": 11}], INFO)
    with pytest.raises(RecipeError, match="needs images"):
        View(["flip"], DataInfo("vectors", 2, (5,)))
