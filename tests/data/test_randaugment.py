"""RandAugment's operations against pillow's, and how they are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from limbeck.data.augment import build_augmentations
from limbeck.data.augment.randaugment import OPERATIONS

MEAN = torch.tensor([0.2, 0.5, 0.7])


def bytes_of(count, channels=3, rows=9, columns=7):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, rows, columns), dtype=torch.uint8, generator=generator)


def run(name, images, amount):
    return OPERATIONS[name](images, torch.full((len(images),), amount, dtype=torch.float64), "black", MEAN)


@pytest.mark.parametrize(
    ("name", "amount", "reference", "tolerance"),
    [
        ("autocontrast", 1.0, ImageOps.autocontrast, 1.01),
        ("equalize", 1.0, ImageOps.equalize, 0.01),
        ("posterize", 0.5, lambda p: ImageOps.posterize(p, 6), 0.01),
        ("posterize", 1.0, lambda p: ImageOps.posterize(p, 4), 0.01),
        ("solarize", 0.5, lambda p: ImageOps.solarize(p, 128), 0.01),
        ("sharpness", 0.5, lambda p: ImageEnhance.Sharpness(p).enhance(1.45), 1.6),
        ("sharpness", -0.5, lambda p: ImageEnhance.Sharpness(p).enhance(0.55), 1.6),
        ("identity", 1.0, lambda p: p, 0.01),
    ],
)
def test_randaugment_operations_against_pillow(name, amount, reference, tolerance):
    images = bytes_of(3, rows=24, columns=20) // 2 + 40
    found = run(name, images.float() / 255, amount) * 255
    for i in range(3):
        expected = np.array(reference(Image.fromarray(images[i].permute(1, 2, 0).numpy())))
        assert np.abs(found[i].permute(1, 2, 0).numpy() - expected).max() < tolerance


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_shape_and_range(name, channels):
    images = torch.cat(
        [bytes_of(4, channels).float() / 255, torch.zeros(1, channels, 9, 7), torch.ones(1, channels, 9, 7)]
    )
    for amount in (-1.0, 0.0, 1.0):
        found = OPERATIONS[name](images, torch.full((6,), amount, dtype=torch.float64), "mean", MEAN[:channels])
        assert found.shape == images.shape
        assert bool(torch.isfinite(found).all())
        assert float(found.min()) >= -1e-5
        assert float(found.max()) <= 1 + 1e-5


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"identity", "autocontrast", "equalize"}))
def test_strength_matters_and_none_changes_nothing(name):
    images = bytes_of(4).float() / 255
    torch.testing.assert_close(run(name, images, 0.0), images, atol=2e-3, rtol=0)
    assert (run(name, images, 1.0) - images).abs().max() > 0.05


def test_randaugment_uses_every_operation():
    images = bytes_of(1, rows=16, columns=16).expand(2000, 3, 16, 16)
    numbers = torch.rand(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    augmentation = build_augmentations([{"name": "randaugment", "n": 1, "magnitude": 20, "fill": "black"}])[0]
    start = images.float() / 255
    found = augmentation(start, numbers, MEAN)
    for number, name in enumerate(OPERATIONS):
        rows = ((numbers[:, 0] * 14).long() == number).nonzero()[:, 0]
        assert 80 < len(rows) < 220
        strength = torch.tensor(
            [20 / 30 if u < 0.5 else -20 / 30 for u in numbers[rows, 1].tolist()], dtype=torch.float64
        )
        assert torch.equal(found[rows], OPERATIONS[name](start[rows], strength, "black", MEAN))
