from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import DataError
from limbeck.evaluate.five_views import FiveViews, views_of


def test_views_are_the_five() -> None:
    images = torch.rand(2, 1, 9, 7)
    views = views_of(images, crop=1.0, degrees=0.0)
    for view, expected in zip(views, (images, images.flip(3), images.flip(2), images, images)):
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_a_turn_of_ninety_degrees_is_exact_on_a_square() -> None:
    images = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(views_of(images, degrees=90.0)[4], images.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_logits_are_averaged_over_the_views() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = torch.rand(4, 1, 8, 8)
    expected = torch.stack([model(v) for v in views_of(images)]).mean(0)
    torch.testing.assert_close(FiveViews(model)(images), expected)
    with pytest.raises(DataError, match="images"):
        FiveViews(model)(torch.rand(4, 64))
