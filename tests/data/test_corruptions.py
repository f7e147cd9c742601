"""Common corruptions: against scipy, Pillow and hand-made cases; the same for every batch and machine."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from limbeck import streams
from limbeck.data.augment import build_augmentations
from limbeck.data.corruptions import corrupt, corruptions, families
from limbeck.data.corruptions.base import SEVERITIES, normal
from limbeck.data.corruptions.blur import blur_matrix, inside, smeared, soft_disk, zoomed
from limbeck.data.corruptions.noise import poisson_table
from limbeck.data.corruptions.weather import plasma
from limbeck.data.load import load_data
from limbeck.data.views import View
from limbeck.errors import RecipeError

KINDS = [kind for kinds in families().values() for kind in kinds]


def pictures(count: int = 6, channels: int = 3, rows: int = 28, columns: int = 32) -> torch.Tensor:
    """Smooth pictures with some texture, as bytes in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 7, 8, generator=generator)
    fine = torch.rand(count, channels, rows, columns, generator=generator)
    mixed = 0.8 * torch.nn.functional.interpolate(coarse, (rows, columns), mode="bilinear") + 0.2 * fine
    return (mixed * 255).round() / 255


def numbers_for(kind: str, images: torch.Tensor, start: int = 0) -> torch.Tensor:
    draws = corruptions[kind].part.draws(tuple(images.shape[1:]))
    index = np.arange(start, start + len(images))
    return torch.from_numpy(streams.uniform(0, kind, 0, index, draws) if draws else np.zeros((len(images), 0)))


def changed(kind: str, images: torch.Tensor, severity: int) -> torch.Tensor:
    return corrupt(images, kind, severity, numbers_for(kind, images))


def test_there_are_fifteen_kinds_in_four_families() -> None:
    assert {family: len(kinds) for family, kinds in families().items()} == {
        "noise": 3, "blur": 4, "weather": 4, "digital": 4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_corrupted_picture_is_one_and_does_not_depend_on_its_batch(kind: str, channels: int) -> None:
    images = pictures(channels=channels)
    for severity in SEVERITIES:
        found = changed(kind, images, severity)
        assert found.shape == images.shape
        assert found.dtype == torch.float32
        torch.testing.assert_close(found * 255, (found * 255).round(), atol=1e-4, rtol=0)
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found != images).float().mean() > 0.004
        alone = corrupt(images[2:3], kind, severity, numbers_for(kind, images[2:3], start=2))
        assert torch.equal(alone, found[2:3])


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("elastic_transform", "glass_blur", "frost")])
def test_a_higher_severity_is_further_from_the_picture(kind: str) -> None:
    # The others trade strength against smoothness or brightness, so that distance does not order them.
    images = pictures(24)
    distance = [float((changed(kind, images, s) - images).square().mean()) for s in SEVERITIES]
    assert distance == sorted(distance)


def test_noise_has_the_deviation_of_its_severity() -> None:
    grey = torch.full((8, 3, 32, 32), 128 / 255)
    assert float((changed("gaussian_noise", grey, 5) - grey).std()) == pytest.approx(0.10, rel=0.03)
    shot = changed("shot_noise", grey, 5)
    assert float(shot.mean()) == pytest.approx(128 / 255, abs=0.005)
    assert float(shot.std()) == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.05)
    impulses = changed("impulse_noise", grey, 5)
    for value in (0.0, 1.0):
        assert float((impulses == value).float().mean()) == pytest.approx(0.035, abs=0.005)


def test_random_numbers_have_the_distributions_they_should() -> None:
    means = torch.tensor([0.0, 0.3, 7.0, 500.0], dtype=torch.float64)
    table = poisson_table(means)
    events = np.arange(table.shape[1])
    for row, mean in zip(table, means.tolist()):
        np.testing.assert_allclose(row.numpy(), stats.poisson.cdf(events, mean), atol=1e-10)
    u = torch.tensor([0.0, 0.1, 0.5, 0.975], dtype=torch.float64)
    np.testing.assert_allclose(normal(u)[1:].numpy(), stats.norm.ppf(u[1:].numpy()), atol=1e-9)
    assert bool(normal(u).isfinite().all())
    dark, photons = torch.zeros(4, 1, 16, 16), changed("shot_noise", torch.zeros(4, 1, 16, 16), 5)
    assert torch.equal(dark, photons)


@pytest.mark.parametrize(("border", "scipys"), [("nearest", "nearest"), ("reflect", "reflect"), ("mirror", "mirror")])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.3, 6.4])
def test_gaussian_blur_equals_scipy(border: str, scipys: str, sigma: float) -> None:
    line = np.random.default_rng(0).random(28)
    found = blur_matrix(28, sigma, 3.0, border) @ torch.from_numpy(line)
    expected = ndimage.gaussian_filter1d(line, sigma, mode=scipys, truncate=3.0) if sigma else line
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_borders_far_outside() -> None:
    assert inside(np.arange(-5, 8), 3, "reflect").tolist() == [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert inside(np.arange(-4, 6), 3, "mirror").tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]


def test_blur_kernels_sum_to_one_and_keep_a_flat_picture() -> None:
    for radius, softness in ((0.3, 0.4), (1.0, 0.2), (1.5, 0.1)):
        disk = soft_disk(radius, softness)
        assert float(disk.sum()) == pytest.approx(1)
        assert torch.equal(disk, disk.T)
    flat = torch.full((2, 1, 20, 20), 0.4)
    for kind in ("defocus_blur", "motion_blur", "zoom_blur", "glass_blur"):
        torch.testing.assert_close(changed(kind, flat, 5), flat)


def test_motion_smears_along_its_direction() -> None:
    point = torch.zeros(3, 1, 31, 31, dtype=torch.float64)
    point[:, :, 15, 15] = 1
    found = smeared(point, 6, 2.0, torch.tensor([0.0, 45.0, -45.0], dtype=torch.float64))
    assert found.sum((1, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    rows = (found.sum(3) * torch.arange(31)).sum((1, 2)) - 15
    columns = (found.sum(2) * torch.arange(31)).sum((1, 2)) - 15
    assert rows[0] == pytest.approx(0, abs=1e-12)
    assert columns[0] < -1  # what is seen at a place comes from larger columns
    assert rows[1] == pytest.approx(columns[1].item())
    assert rows[2] == pytest.approx(-columns[2].item())


def test_zoom_equals_scipy() -> None:
    images = pictures(1, 1, 32, 32).double()
    for factor in (1.0, 1.1, 1.25):
        shown = int(np.ceil(32 / factor))
        top = (32 - shown) // 2
        middle = images[0, 0, top : top + shown, top : top + shown].numpy()
        large = ndimage.zoom(middle, factor, order=1)
        trim = (len(large) - 32) // 2
        np.testing.assert_allclose(
            zoomed(images, factor)[0, 0].numpy(), large[trim : trim + 32, trim : trim + 32], atol=1e-9
        )


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_equals_pillow(severity: int) -> None:
    images = pictures(2)
    part = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    for image, found in zip(images, changed("pixelate", images, severity)):
        picture = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        small = picture.resize((int(32 * part), int(28 * part)), Image.Resampling.BOX)
        expected = np.asarray(small.resize((32, 28), Image.Resampling.BOX))
        assert np.abs((found.permute(1, 2, 0).numpy() * 255) - expected).max() <= 1.01


def test_jpeg_is_pillows() -> None:
    images = pictures(1)
    file = io.BytesIO()
    Image.fromarray((images[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "JPEG", quality=40)
    found = (changed("jpeg_compression", images, 5)[0].permute(1, 2, 0) * 255).round().numpy()
    assert np.array_equal(found, np.asarray(Image.open(file)))


def test_brightness_adds_to_the_value_of_hsv_and_contrast_keeps_the_mean() -> None:
    import colorsys

    images = pictures(1)
    found = changed("brightness", images, 4)
    for row, column in ((0, 0), (5, 17), (27, 31)):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[0, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        assert found[0, :, row, column].tolist() == pytest.approx(expected, abs=0.003)
    black = torch.zeros(1, 3, 16, 16)
    torch.testing.assert_close(changed("brightness", black, 5), torch.full_like(black, 0.3), atol=0.003, rtol=0)
    flat = changed("contrast", images, 5)
    torch.testing.assert_close(flat.mean((2, 3)), images.mean((2, 3)), atol=2e-3, rtol=0)
    assert float(flat.std()) < 0.2 * float(images.std())


def test_clouds_fill_their_range_and_are_smoother_where_roughness_fades_faster() -> None:
    numbers = torch.rand(4, 32 * 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rough, smooth = plasma(numbers, 1.75), plasma(numbers, 3.0)
    for cloud in (rough, smooth):
        assert cloud.shape == (4, 32, 32)
        assert cloud.amin((1, 2)).tolist() == [0] * 4
        assert cloud.amax((1, 2)).tolist() == [1] * 4
    assert smooth.diff(dim=1).abs().mean() < 0.7 * rough.diff(dim=1).abs().mean()


def test_the_augmentation_of_a_recipe_corrupts_the_data() -> None:
    source = load_data("fashion-mnist-small", split="test")
    view = View([{"name": "corruption", "kind": "fog", "severity": 2}], source.info, normalize=False)
    index = np.array([4, 11])
    images = source.fetch(index, 0)["inputs"]
    seen = view(images, index, seed=0, epoch=0)
    assert torch.equal(seen, view(images, index, seed=0, epoch=0))
    assert not torch.equal(seen, images.float() / 255)
    with pytest.raises(RecipeError, match="Did you mean 'fog'"):
        build_augmentations([{"name": "corruption", "kind": "fogg"}])
    with pytest.raises(RecipeError, match="16 to 64"):
        corrupt(torch.zeros(1, 3, 224, 224), "fog", 1, torch.zeros(1, 256 * 256))
    with pytest.raises(RecipeError, match="grey or colour"):
        corrupt(torch.zeros(1, 4, 32, 32), "fog", 1, torch.zeros(1, 1024))
