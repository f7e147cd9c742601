"""What the models of the zoo share: their registry, their shape and their initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import validated
from limbeck.registry import Registry

models: Registry[Callable[..., nn.Module]] = Registry("model", "limbeck.students")


def register(
    name: str, *, title: str, paper: str, year: int, authors: str = "", params: int | None = None
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Returns a decorator that registers a constructor and checks its keyword arguments at every call.

    A constructor takes keywords only: ``num_classes``; ``in_channels``, ``image_size`` (``(H, W)``) or ``in_features``
    where it depends on the data; and what else the architecture leaves open.

    Args:
        name: name in recipes.
        title: title of the publication.
        paper: arXiv number, or a URL where there is none; empty where there is no paper.
        year: year of publication.
        authors: authors of the publication, joined by ``and`` as BibTeX does.
        params: number of parameters for 100 classes and 3 channels.
    """
    enter = models.register(name, title=title, paper=paper, year=year, authors=authors, params=params)

    def decorate(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return enter(validated(f"model '{name}'", constructor))

    return decorate


class StagedClassifier(nn.Module):
    """A stem, stages of falling resolution, global average pooling and a linear classifier.

    Modules: ``stem``, ``stages.0`` ... ``stages.<n-1>``, ``neck`` (what stands between the last stage and the
        pooling), ``head``.

    Args:
        stem: from the image to the first map.
        stages: one module a stage, from map to map.
        width: channels of the map that is pooled.
        num_classes: number of classes.
        anatomy: where the literature taps the model; a pre-activation that a ReLU reads is given as ``<relu>@in``.
        neck: what follows the last stage.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        *,
        width: int,
        num_classes: int,
        anatomy: Anatomy,
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.neck = neck or nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)
        self.anatomy = anatomy
        _overwrite_untapped(self, anatomy)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits ``[B, num_classes]`` of ``images`` ``[B, in_channels, H, W]``."""
        maps = self.neck(self.stages(self.stem(images)))
        return self.head(self.pool(maps).flatten(1))


def _overwrite_untapped(model: nn.Module, anatomy: Anatomy) -> None:
    """Lets every ReLU overwrite its input, which saves some percent of a step, except those whose input is a tap."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.inplace = f"{name}@in" not in anatomy.preacts


def initialise(model: nn.Module, *, head_std: float | None = None) -> None:
    """Draws weights as the CIFAR literature does: He's normal distribution over the fan-out, norms as the identity.

    Args:
        model: the model, changed in place.
        head_std: standard deviation of linear weights, with zero biases; None keeps PyTorch's own.

    Reference:
        He et al., Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            _zero(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and head_std is not None:
            nn.init.normal_(module.weight, 0.0, head_std)
            _zero(module.bias)


def _zero(bias: Any) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, *, groups: int = 1) -> nn.Conv2d:
    """Returns a 3x3 convolution that keeps the resolution at stride 1, without a bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, *, groups: int = 1) -> nn.Conv2d:
    """Returns a 1x1 convolution without a bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)


def conv_norm_act(convolution: nn.Conv2d) -> nn.Sequential:
    """Returns ``convolution`` followed by batch normalisation and a ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())
