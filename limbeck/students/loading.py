"""Models by name: the zoo's, other libraries' and a user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from limbeck.errors import RecipeError, UnknownNameError, suggest
from limbeck.students.adapted_input import Normalisation
from limbeck.students.base import models
from limbeck.students.external import Request, check_runs, hf_model, python_model, timm_model, torchvision_model
from limbeck.students.weight_files import load_weights, save_weights, shipped_weights, zoo_weights

__all__ = ["build_model", "load_weights", "save_weights", "shipped_weights", "zoo_weights"]

_LIBRARIES: dict[str, Callable[[Request], nn.Module]] = {
    "timm": timm_model,
    "hf": hf_model,
    "torchvision": torchvision_model,
    "python": python_model,
}
# A name of the hub is asked for because of its weights; the other libraries' names are architectures first.
_PRETRAINED_BY_DEFAULT = ("hf",)


def build_model(
    spec: str | Mapping[str, Any],
    *,
    num_classes: int,
    input_shape: Sequence[int],
    trust: bool = False,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> nn.Module:
    """Returns a model by name.

    Args:
        spec: a name, or a mapping of ``name`` and options. Names are those of the zoo; ``timm:NAME``;
            ``hf:NAME_OR_FOLDER``; ``torchvision:NAME``; ``python:package.module:factory``. Options of the zoo's models
            are their constructors' keywords. Options of the libraries' models are ``pretrained`` (default true for
            ``hf``, false otherwise), ``input_size`` (side to which the model resizes its images) and what the library
            takes.
        num_classes: number of classes.
        input_shape: ``(C, H, W)`` of an image, or the shape of a feature vector.
        trust: allow ``python:`` models, which run the code they name.
        mean: statistics by which the inputs are normalised; pretrained models bring them to their own.
        std: likewise.

    Raises:
        UnknownNameError: nothing has that name; the message proposes near matches.
        RecipeError: an option is unknown or out of range, the model does not fit the data, or it needs trust.
        MissingExtraError: the library is not installed.
        CheckpointError: pretrained weights cannot be had.
    """
    name, options = _parse(spec)
    shape = tuple(input_shape)
    given = Normalisation(tuple(mean), tuple(std)) if mean and std else None
    prefix, colon, rest = name.partition(":")
    if not colon:
        return _zoo_model(name, options, num_classes, shape, given)
    if prefix not in _LIBRARIES:
        raise UnknownNameError(f"model '{name}': unknown library '{prefix}'. {suggest(prefix, _LIBRARIES)}")
    if prefix == "python" and not trust:
        raise RecipeError(
            f"model '{name}' would run the code it names. If you trust that code, say so: --trust on the command line, "
            "trust=True in Python"
        )
    size = options.pop("input_size", None)
    if size is not None and (type(size) is not int or size < 1):
        raise RecipeError(f"model '{name}': 'input_size' = {size!r} should be a positive number of pixels")
    pretrained = False if prefix == "python" else options.pop("pretrained", prefix in _PRETRAINED_BY_DEFAULT)
    if not isinstance(pretrained, bool):
        raise RecipeError(f"model '{name}': 'pretrained' = {pretrained!r} should be true or false")
    if prefix != "python":
        _check_image(name, shape)
    model = _LIBRARIES[prefix](Request(rest, num_classes, shape, options, pretrained, size, given))
    check_runs(name, model, num_classes, shape)
    return model


def _parse(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec) if isinstance(spec, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise RecipeError(f"a model is a name, or a mapping with the key 'name' and options; got {spec!r}")
    return name, {str(key): value for key, value in options.items()}


def _zoo_model(
    name: str, options: dict[str, Any], num_classes: int, shape: tuple[int, ...], given: Normalisation | None
) -> nn.Module:
    constructor = models[name].part
    takes = inspect.signature(constructor).parameters
    facts = _facts(name, takes, shape)
    if given is not None:
        facts |= {"mean": given.mean, "std": given.std}
    keywords = {key: value for key, value in facts.items() if key in takes}
    return constructor(**{"num_classes": num_classes, **keywords, **options})


def _facts(name: str, takes: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what a constructor may want to know of the data."""
    if "in_features" in takes:
        return {"in_features": math.prod(shape)}
    _check_image(name, shape)
    return {"in_channels": shape[0], "image_size": shape[1:]}


def _check_image(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise RecipeError(
            f"model '{name}' reads images (C, H, W), but the data gives samples of shape {shape}; use 'mlp'"
        )
