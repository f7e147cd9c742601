"""Augmentations against loops, colorsys and pillow."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from limbeck.data.augment import augmentations, build_augmentations
from limbeck.data.augment.base import policies
from limbeck.data.augment.colour import hue
from limbeck.data.augment.framing import windows
from limbeck.data.augment.warping import affine_matrices, warp
from limbeck.errors import RecipeError, UnknownNameError

MEAN = torch.tensor([0.2, 0.5, 0.7])


def bytes_of(count=6, channels=3, rows=9, columns=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, rows, columns), dtype=torch.uint8, generator=generator)


def uniform(*shape, seed=1):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def op(name, **options):
    return build_augmentations([{"name": name, **options}])[0]


def apply(name, images, numbers=None, mean=MEAN, **options):
    augmentation = op(name, **options)
    shape = tuple(images.shape[1:])
    numbers = uniform(len(images), augmentation.draws(shape)) if numbers is None else numbers
    if not augmentation.takes_bytes() and images.dtype == torch.uint8:
        images = images.float() / 255
    result = augmentation(images, numbers, mean)
    assert tuple(result.shape[1:]) == augmentation.output_shape(shape)
    return result


def test_windows_against_slices():
    images = bytes_of()
    top, left = torch.tensor([0, 4, 2, 1, 3, 4]), torch.tensor([3, 0, 1, 2, 3, 3])
    found = windows(images, top, left, 5, 4)
    for i in range(6):
        assert torch.equal(found[i], images[i, :, top[i] : top[i] + 5, left[i] : left[i] + 4])


@pytest.mark.parametrize("fill", ["black", "mean"])
@pytest.mark.parametrize(("padding", "border"), [(2, 2), (0, 0), (0.3, 2)])
@pytest.mark.parametrize("size", [None, 5, (4, 7)])
def test_crop_against_a_loop(padding, border, fill, size):
    images, numbers = bytes_of(), uniform(6, 2)
    found = apply("crop", images, numbers, padding=padding, fill=fill, size=size)
    height, width = (9, 7) if size is None else (size, size) if isinstance(size, int) else size
    for i, picture in enumerate(images.numpy()):
        picture = picture if fill == "black" else (picture / 255).astype(np.float32)
        canvas = np.zeros((3, 9 + 2 * border, 7 + 2 * border), picture.dtype)
        if fill == "mean":
            canvas += MEAN.numpy()[:, None, None]
        canvas[:, border : border + 9, border : border + 7] = picture
        top = int(numbers[i, 0] * (canvas.shape[1] - height + 1))
        left = int(numbers[i, 1] * (canvas.shape[2] - width + 1))
        np.testing.assert_allclose(found[i].numpy(), canvas[:, top : top + height, left : left + width], atol=1e-7)


def test_crop_reaches_every_place_equally_often():
    marked = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    marked[:, 0, 2, 2] = 1
    where = apply("crop", marked, padding=2).view(4000, -1).float()
    assert where.sum(1).eq(1).all()
    shares = where.mean(0) * 25
    assert shares.min() > 0.75
    assert shares.max() < 1.25


@pytest.mark.parametrize(("axis", "dimension"), [("horizontal", 2), ("vertical", 1)])
def test_flip_against_a_loop(axis, dimension):
    images = bytes_of()
    numbers = torch.tensor([[0.1], [0.9], [0.29], [0.31], [0.0], [0.5]], dtype=torch.float64)
    found = apply("flip", images, numbers, p=0.3, axis=axis)
    for i in range(6):
        expected = images[i].flip(dimension) if numbers[i] < 0.3 else images[i]
        assert torch.equal(found[i], expected)


def test_center_crop():
    assert torch.equal(apply("center_crop", bytes_of(), size=(5, 3)), bytes_of()[:, :, 2:7, 2:5])


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_cutout_against_a_loop(fill):
    images, numbers = bytes_of(count=40), uniform(40, 3)
    found = apply("cutout", images, numbers, size=4, p=0.7, fill=fill)
    colour = MEAN.numpy() if fill == "mean" else np.zeros(3, np.float32)
    for i, picture in enumerate(images.numpy()):
        expected = (picture / 255).astype(np.float32) if fill == "mean" else picture.copy()
        if numbers[i, 0] < 0.7:
            y, x = int(numbers[i, 1] * 9), int(numbers[i, 2] * 7)
            for row in range(max(0, y - 2), min(9, y + 2)):
                for column in range(max(0, x - 2), min(7, x + 2)):
                    expected[:, row, column] = colour
        assert np.array_equal(found[i].numpy(), expected)


def test_erase_hides_one_box_inside_the_picture():
    images = torch.ones(500, 1, 20, 30)
    hidden = apply("erase", images, mean=torch.zeros(1), p=0.6, area=(0.1, 0.3), ratio=(0.5, 2.0))[:, 0] == 0
    erased = hidden.flatten(1).any(1)
    assert 0.52 < erased.float().mean() < 0.68
    for mask in hidden[erased]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(mask.sum()) == height * width
        assert 0.08 < height * width / 600 < 0.33
        assert 0.4 < height / width < 2.4


def test_noise_is_normal_and_independent():
    images = torch.zeros(64, 1, 20, 20)
    noise = apply("noise", images, mean=torch.zeros(1), std=0.5) / 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise.abs() < 1.959964).float().mean()) == pytest.approx(0.95, abs=0.01)


def test_noise_takes_vectors():
    assert op("noise").output_shape((5,)) == (5,)


def test_a_quarter_turn_and_whole_shifts_are_exact():
    images = bytes_of(rows=8, columns=8).float() / 255
    quarter = warp(
        images, affine_matrices([90] * 6, [0] * 6, [0] * 6, [1] * 6, [0] * 6, [0] * 6), (8, 8), "black", MEAN
    )
    torch.testing.assert_close(quarter, images.rot90(-1, (2, 3)), atol=1e-5, rtol=0)
    moved = warp(images, affine_matrices([0] * 6, [2] * 6, [-1] * 6, [1] * 6, [0] * 6, [0] * 6), (8, 8), "black", MEAN)
    torch.testing.assert_close(moved[:, :, :-1, 2:], images[:, :, 1:, :-2], atol=1e-5, rtol=0)
    assert moved[:, :, -1].abs().max() < 1e-5
    assert moved[:, :, :, :2].abs().max() < 1e-5


@pytest.mark.parametrize("degrees", [17.0, -33.0])
def test_rotation_against_pillow(degrees):
    smooth = np.array(Image.fromarray(bytes_of(1, rows=4, columns=4)[0].permute(1, 2, 0).numpy()).resize((32, 24)))
    expected = np.array(Image.fromarray(smooth).rotate(-degrees, Image.Resampling.BILINEAR)) / 255
    images = torch.from_numpy(smooth).permute(2, 0, 1)[None] / 255
    found = warp(images, affine_matrices([degrees], [0], [0], [1], [0], [0]), (24, 32), "black", MEAN)[0]
    # Pillow treats the border differently, and rounds to bytes; the middle never sees the border.
    middle = np.abs(found.permute(1, 2, 0).numpy() - expected)[6:18, 8:24]
    assert middle.max() < 1.01 / 255


def test_affine_matrix_inverts_rotation_scale_shear_and_shift():
    angle, dx, dy, zoom, kx, ky = 25.0, 1.5, -0.5, 1.3, 0.2, -0.1
    inverse = affine_matrices([angle], [dx], [dy], [zoom], [kx], [ky])[0].numpy()
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    forward = zoom * np.array([[c, -s], [s, c]]) @ np.array([[1, kx], [ky, 1]])
    for point in ([0.0, 0.0], [3.0, -2.0]):
        moved = forward @ point + [dx, dy]
        np.testing.assert_allclose(inverse[:, :2] @ moved + inverse[:, 2], point, atol=1e-12)


def test_warps_fill_with_the_mean():
    images = MEAN.view(1, 3, 1, 1).expand(4, 3, 9, 9).contiguous()
    for name, options in (
        ("affine", {"translate": 0.5, "degrees": 40, "shear": 0.5, "fill": "mean"}),
        ("rotate", {"degrees": 45, "fill": "mean"}),
    ):
        torch.testing.assert_close(apply(name, images, **options), images, atol=1e-6, rtol=0)


def test_resized_crop_of_everything_is_the_picture():
    images = bytes_of(rows=8, columns=8).float() / 255
    found = apply("resized_crop", images, size=8, area=(1.0, 1.0), ratio=(1.0, 1.0))
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)


def test_resized_crop_stays_inside():
    # A picture that says where its pixels come from: black never enters.
    images = torch.ones(200, 1, 12, 20)
    assert apply("resized_crop", images, size=(6, 9), area=(0.1, 1.0)).min() > 0.999


def test_resize_against_pillow():
    images = bytes_of(1, rows=12, columns=10)
    expected = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((5, 4), Image.Resampling.BILINEAR)
    found = apply("resize", images, size=(4, 5))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - np.array(expected)).max() < 1.01


@pytest.mark.parametrize(
    ("name", "enhancer", "position"),
    [
        ("brightness", ImageEnhance.Brightness, 1),
        ("contrast", ImageEnhance.Contrast, 2),
        ("saturation", ImageEnhance.Color, 3),
    ],
)
@pytest.mark.parametrize("number", [0.0, 0.3, 0.9])
def test_jitter_against_pillow(name, enhancer, position, number):
    images, amount = bytes_of(1), 0.6
    numbers = torch.zeros(1, 5, dtype=torch.float64)
    numbers[0, position] = number
    found = apply("color_jitter", images, numbers, **{name: amount})[0].permute(1, 2, 0).numpy() * 255
    factor = 1 - amount + 2 * amount * number
    expected = np.array(enhancer(Image.fromarray(images[0].permute(1, 2, 0).numpy())).enhance(factor))
    assert np.abs(found - expected).max() < 1.6


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.3, 0.5])
def test_hue_against_colorsys(turn):
    images = bytes_of(1).float() / 255
    images[0, :, 0, 0] = 0.4
    found = hue(images, torch.tensor([turn]))[0]
    for row in range(9):
        for column in range(7):
            h, s, v = colorsys.rgb_to_hsv(*images[0, :, row, column].tolist())
            expected = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
            np.testing.assert_allclose(found[:, row, column].numpy(), expected, atol=2e-6)


def test_colour_of_grey_pictures():
    grey = bytes_of(4, channels=1)
    changed = apply("color_jitter", grey, mean=torch.zeros(1), saturation=0.9, hue=0.5)
    torch.testing.assert_close(changed, grey.float() / 255)
    three = apply("grayscale", bytes_of(4), p=1.0)
    assert torch.equal(three[:, 0], three[:, 1])
    assert torch.equal(apply("grayscale", bytes_of(4), p=0.0), bytes_of(4).float() / 255)


def test_every_registered_augmentation_has_help_and_canonical_options():
    for entry in augmentations.entries():
        examples = {"size": 4, "kind": "fog"}
        required = {k: examples[k] for k, field in entry.part.model_fields.items() if field.is_required()}
        built = op(entry.name, **required)
        assert build_augmentations([built.options()])[0] == built
        assert "Args:" in (entry.part.__doc__ or "")


def test_policies_are_their_parts():
    strong = build_augmentations(["strong"])
    assert [a.name for a in strong] == ["crop", "flip", "randaugment", "cutout"]
    assert strong == build_augmentations(policies["strong"])


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (["crpo"], UnknownNameError, "Did you mean 'crop'"),
        ([{"name": "crop", "pading": 4}], RecipeError, "unknown key 'pading'. Did you mean 'padding'"),
        ([{"name": "crop", "padding": -1}], RecipeError, "augmentation 'crop'.*'padding' = -1"),
        ([{"name": "flip", "p": 1.5}], RecipeError, "'p' = 1.5"),
        ([{"name": "resize"}], RecipeError, "'size' is missing"),
        ([{"name": "resize", "size": 0}], RecipeError, "size"),
        ([{"name": "erase", "area": [0.5, 0.1]}], RecipeError, "must not be the larger"),
        ([{"name": "randaugment", "magnitude": 31}], RecipeError, "magnitude"),
        ([{"name": "strong", "n": 3}], RecipeError, "policy 'strong' has no options"),
        ([{"padding": 4}], RecipeError, "an augmentation is written"),
        ([{"name": "crop", 3: 4}], RecipeError, "unknown"),
        ("crop", RecipeError, "a list of entries"),
        ({"name": "crop"}, RecipeError, "a list of entries"),
    ],
)
def test_errors_name_cause_and_fix(entries, error, message):
    with pytest.raises(error, match=message):
        build_augmentations(entries)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crop", {"size": 20, "padding": 1}, "larger than the padded image, 11x9"),
        ("center_crop", {"size": 8}, "larger than the image, 9x7"),
    ],
)
def test_windows_that_do_not_fit(name, options, message):
    with pytest.raises(RecipeError, match=message):
        op(name, **options).output_shape((3, 9, 7))


def test_vectors_are_no_pictures():
    with pytest.raises(RecipeError, match=r"'flip' needs images, but samples have shape \(5,\)"):
        op("flip").output_shape((5,))
