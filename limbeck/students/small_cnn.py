"""A convolutional network of a few thousand parameters, for demonstrations and microcontrollers."""

from __future__ import annotations

from torch import nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count
from limbeck.students.base import StagedClassifier, conv3x3, conv_norm_act, initialise, register


@register("small_cnn", title="", paper="", year=2026)
def small_cnn(*, num_classes: Count, in_channels: Count = 3, width: Count = 8) -> nn.Module:
    """Returns four normalised convolutions: a stem at half resolution, stages of 1, 2 and 4 times ``width`` channels.

    It has the three stages and the tap points of a CIFAR ResNet, one convolution each.
    """
    stages = [
        conv_norm_act(conv3x3(width, width)),
        conv_norm_act(conv3x3(width, 2 * width, 2)),
        conv_norm_act(conv3x3(2 * width, 4 * width, 2)),
    ]
    model = StagedClassifier(
        conv_norm_act(conv3x3(in_channels, width, 2)),
        stages,
        width=4 * width,
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=("stages.0", "stages.1", "stages.2"),
            preacts=("stages.0.2@in", "stages.1.2@in", "stages.2.2@in"),
            pooled=("head@in",),
            head="head",
            norms=("stages.0.1", "stages.1.1", "stages.2.1"),
        ),
    )
    initialise(model)
    return model
