"""Projectors: shapes, initial scale, precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.methods.projectors import bottleneck, connector, perceptron, project, resizing_regressor


def _map(channels: int, height: int, width: int | None = None) -> torch.Tensor:
    return torch.randn(2, channels, height, height if width is None else width)


@pytest.mark.parametrize(("ours", "theirs", "kernel", "kind"), [
    ((8, 8), (8, 8), (1, 1), nn.Conv2d),
    ((8, 8), (4, 4), (3, 3), nn.Conv2d),
    ((4, 4), (8, 8), (4, 4), nn.ConvTranspose2d),
    ((7, 7), (5, 5), (3, 3), nn.Conv2d),
    ((8, 6), (4, 3), (3, 3), nn.Conv2d),
    ((7, 6), (5, 6), (3, 1), nn.Conv2d),
])  # fmt: skip
def test_the_regressor_gives_the_teachers_shape(
    ours: tuple[int, int], theirs: tuple[int, int], kernel: tuple[int, int], kind: type
) -> None:
    student, teacher = _map(5, *ours), _map(7, *theirs)
    regressor = resizing_regressor(student, teacher)
    assert type(regressor[0]) is kind
    assert regressor[0].kernel_size == kernel
    assert project(regressor, student).shape == teacher.shape
    assert (project(regressor, student) >= 0).all()


def test_the_regressor_without_relu_is_signed() -> None:
    student = _map(5, 8)
    assert (project(resizing_regressor(student, student, relu=False), student) < 0).any()


def test_the_regressor_leaves_sizes_alone_that_no_rule_covers() -> None:
    student, teacher = _map(5, 2), _map(7, 8)
    assert project(resizing_regressor(student, teacher), student).shape == (2, 7, 2, 2)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_connector_keeps_the_size(kernel_size: int) -> None:
    student, teacher = _map(5, 8), _map(7, 4)
    module = connector(student, teacher, kernel_size=kernel_size)
    assert project(module, student).shape == (2, 7, 8, 8)
    assert module[0].weight.std().item() == pytest.approx((2 / (kernel_size**2 * 7)) ** 0.5, rel=0.4)


@pytest.mark.parametrize("hidden", [None, 3])
def test_the_perceptron_has_its_width(hidden: int | None) -> None:
    student, teacher = _map(5, 8), _map(7, 4)
    module = perceptron(student, teacher, hidden=hidden)
    assert module[2].in_channels == (7 if hidden is None else 3)
    assert project(module, student).shape == (2, 7, 8, 8)


def test_the_bottleneck_is_never_narrower_than_one_channel() -> None:
    student, teacher = _map(5, 8), _map(7, 4)
    assert bottleneck(student, teacher, factor=2)[0].out_channels == 3
    assert bottleneck(student, teacher, factor=100)[0].out_channels == 1
    assert project(bottleneck(student, teacher), student).shape == (2, 7, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_another_precision_are_converted(dtype: torch.dtype) -> None:
    student = _map(5, 8)
    module = connector(student, student)
    assert project(module, student.to(dtype)).dtype == torch.float32
