from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.students.cost import Cost, cost_of, count_macs, count_parameters
from limbeck.students.loading import build_model
from limbeck.students.resnet import resnet20


@pytest.mark.parametrize(
    ("convolution", "size", "macs"),
    [
        # Output pixels, times output channels, times input channels a group, times kernel.
        (nn.Conv2d(3, 8, 3, padding=1), 10, 10 * 10 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), 10, 5 * 5 * 8 * 4 * 9),
        (nn.Conv2d(6, 12, 1, groups=3), 7, 7 * 7 * 12 * 2),
        (nn.Conv2d(6, 6, 5, groups=6), 9, 5 * 5 * 6 * 25),
    ],
)
def test_convolution(convolution: nn.Conv2d, size: int, macs: int) -> None:
    assert count_macs(convolution, (convolution.in_channels, size, size)) == macs


def test_linear_layers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    assert cost_of(model, (3, 2, 2)) == Cost(parameters=12 * 5 + 5 + 5 * 3 + 3, macs=12 * 5 + 5 * 3)


def test_resnet20_has_the_published_41_million() -> None:
    # The literature gives 0.041 G; by hand: stem, 18 convolutions, 2 projections, the classifier.
    stages = [(16, 32), (32, 16), (64, 8)]
    macs = 32 * 32 * 3 * 16 * 9 + 64 * 10
    for i, (width, size) in enumerate(stages):
        before = stages[max(i - 1, 0)][0]
        macs += size**2 * 9 * width * (before + 5 * width) + (size**2 * before * width if i else 0)
    assert count_macs(resnet20(num_classes=10), (3, 32, 32)) == macs
    assert round(macs / 1e6) == 41


def test_attention_is_counted() -> None:
    tokens, dim, hidden, blocks = 49, 96, 192, 6
    block = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim + 2 * tokens * dim * hidden
    expected = tokens * 16 * dim + blocks * block + dim * 10
    assert count_macs(build_model("vit_micro", num_classes=10, input_shape=(1, 28, 28)), (1, 28, 28)) == expected


class _RealOnly(nn.Module):
    """Looks at values, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if bool((x == 0).all()) else x


def test_a_model_that_cannot_run_on_meta_runs_for_real() -> None:
    assert count_macs(_RealOnly(), (6,)) == 12


def test_counting_leaves_the_model_alone() -> None:
    model = resnet20(num_classes=10).train()
    model.stages[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    count_macs(model, (3, 16, 16))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16 + 4 + 4
    assert count_macs(model, (4,)) == 32
