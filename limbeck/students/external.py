"""Models of other libraries by name: ``timm:``, ``hf:``, ``torchvision:``, and a user's own factory, ``python:``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import CheckpointError, LimbeckError, MissingExtraError, RecipeError, UnknownNameError, suggest
from limbeck.modes import evaluation_mode
from limbeck.students.adapted_input import AdaptedInput, Normalisation
from limbeck.torchvision_compat import ensure_torchvision


@dataclass(frozen=True)
class Request:
    """What a model is asked to be.

    Attributes:
        name: the name after the prefix.
        num_classes: number of classes.
        input_shape: ``(C, H, W)`` of an image, or the shape of a feature vector.
        options: keyword arguments for the library.
        pretrained: start from the library's weights.
        input_size: side to which images are resized inside the model.
        given: how the images arrive normalised, where known.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    options: Mapping[str, Any]
    pretrained: bool
    input_size: int | None
    given: Normalisation | None

    @property
    def channels(self) -> int:
        """Channels the network has: those of the images, but three where colour weights are to serve grey ones."""
        return 3 if self.pretrained and self.input_shape[0] == 1 else self.input_shape[0]

    def adapt(
        self, network: nn.Module, wanted: Normalisation | None, *, channels: int, always: bool = False
    ) -> nn.Module:
        """Puts what the images need in front of ``network``, which reads ``channels``; nothing if they need nothing."""
        to_colour = channels == 3 and self.input_shape[0] == 1
        if self.given is None or not self.pretrained or self.given == wanted:
            wanted = None
        if not (always or to_colour or self.input_size or wanted):
            return network
        given = self.given
        if given is not None and to_colour:
            given = Normalisation(given.mean * 3, given.std * 3)
        return AdaptedInput(network, size=self.input_size, to_colour=to_colour, given=given, wanted=wanted)


def timm_model(request: Request) -> nn.Module:
    """Returns a model of PyTorch image models (timm); ``options`` go to ``timm.create_model``.

    Raises:
        MissingExtraError: timm is not installed.
        UnknownNameError: timm has no such model.
        RecipeError: timm does not take an option.
        CheckpointError: the weights could not be fetched.
    """
    ensure_torchvision()
    try:
        import timm
    except ImportError:
        raise MissingExtraError("timm", "vision", f"the model 'timm:{request.name}'") from None
    if not timm.is_model(request.name):
        raise UnknownNameError(f"timm has no model '{request.name}'. {suggest(request.name, timm.list_models())}")
    network = _created(
        f"timm:{request.name}",
        request.pretrained,
        lambda: timm.create_model(
            request.name,
            pretrained=request.pretrained,
            num_classes=request.num_classes,
            in_chans=request.channels,
            **request.options,
        ),
    )
    config = timm.data.resolve_model_data_config(network)
    wanted = Normalisation(tuple(config["mean"]), tuple(config["std"]))
    return request.adapt(network, wanted, channels=request.channels)


def hf_model(request: Request) -> nn.Module:
    """Returns a classifier of transformers from its hub, its cache or a folder; ``options`` change its configuration.

    Weights are read from safetensors only, and no code of the repository is run.

    Raises:
        MissingExtraError: transformers is not installed.
        RecipeError: the configuration has no such option.
        CheckpointError: the model is not in the cache and cannot be fetched, or has no safe weights.
    """
    ensure_torchvision()
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError:
        raise MissingExtraError("transformers", "hf", f"the model 'hf:{request.name}'") from None
    label = f"hf:{request.name}"
    # transformers would take the name of an absent folder for a repository's and go to the network.
    if request.name.startswith((".", "/", "~")) and not Path(request.name).expanduser().is_dir():
        raise CheckpointError(f"'{label}': there is no folder {request.name}")
    where = str(Path(request.name).expanduser()) if request.name.startswith("~") else request.name
    config = _created(label, True, lambda: AutoConfig.from_pretrained(where, trust_remote_code=False))
    for option, value in request.options.items():
        if option not in config.to_dict():
            raise RecipeError(f"model '{label}': unknown option '{option}'. {suggest(option, config.to_dict())}")
        setattr(config, option, value)
    config.num_labels = request.num_classes
    if not request.pretrained:
        config.num_channels = request.input_shape[0]
        network = _created(label, False, lambda: AutoModelForImageClassification.from_config(config))
        return request.adapt(network, None, channels=request.input_shape[0], always=True)
    network = _created(
        label,
        True,
        lambda: AutoModelForImageClassification.from_pretrained(
            where, config=config, ignore_mismatched_sizes=True, use_safetensors=True, trust_remote_code=False
        ),
    )
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(where)
        wanted = Normalisation(tuple(processor["image_mean"]), tuple(processor["image_std"]))
    except (OSError, KeyError):
        wanted = None
    return request.adapt(network, wanted, channels=getattr(config, "num_channels", 3), always=True)


def torchvision_model(request: Request) -> nn.Module:
    """Returns a classifier of torchvision; ``options`` go to its constructor.

    Raises:
        MissingExtraError: torchvision is not installed.
        UnknownNameError: torchvision has no such classifier.
        RecipeError: the constructor does not take an option.
        CheckpointError: the weights could not be fetched.
    """
    if not ensure_torchvision():
        raise MissingExtraError("torchvision", "vision", f"the model 'torchvision:{request.name}'")
    from torchvision import models

    names = models.list_models(module=models)
    if request.name not in names:
        raise UnknownNameError(f"torchvision has no classifier '{request.name}'. {suggest(request.name, names)}")
    weights = models.get_model_weights(request.name).DEFAULT if request.pretrained else None
    # Weights come with the classes they were trained for; the classifier is replaced afterwards.
    classes = {} if request.pretrained else {"num_classes": request.num_classes}
    label = f"torchvision:{request.name}"
    network = _created(
        label, request.pretrained, lambda: models.get_model(request.name, weights=weights, **classes, **request.options)
    )
    if weights is None:
        return request.adapt(network, None, channels=3)
    _replace_classifier(network, request.num_classes)
    preset = weights.transforms()
    return request.adapt(network, Normalisation(tuple(preset.mean), tuple(preset.std)), channels=3)


def python_model(request: Request) -> nn.Module:
    """Calls a user's factory ``package.module:factory``, which runs that module's code.

    The factory gets those of ``num_classes``, ``input_shape`` and ``in_channels`` that it names, and ``options``.

    Raises:
        RecipeError: there is no such module or factory, it does not take an option, fails, or returns no module.
    """
    label = f"python:{request.name}"
    module_name, _, factory_name = request.name.partition(":")
    if not module_name or not factory_name:
        raise RecipeError(f"model '{label}': write python:package.module:factory")
    factory = getattr(_import_user_module(module_name, label), factory_name, None)
    if not callable(factory):
        raise RecipeError(f"model '{label}': the module {module_name} has no callable '{factory_name}'")
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {
        "num_classes": request.num_classes,
        "input_shape": request.input_shape,
        "in_channels": request.input_shape[0],
    }
    keywords = {name: value for name, value in known.items() if name in parameters} | dict(request.options)
    unknown = [name for name in keywords if name not in parameters and not takes_any]
    if unknown:
        raise RecipeError(f"model '{label}': unknown option '{unknown[0]}'. {suggest(unknown[0], parameters)}")
    try:
        network = factory(**keywords)
    except LimbeckError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise RecipeError(f"model '{label}' failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise RecipeError(f"model '{label}' returned {type(network).__name__} and not a torch.nn.Module")
    return request.adapt(network, None, channels=request.input_shape[0])


def check_runs(label: str, model: nn.Module, num_classes: int, input_shape: tuple[int, ...]) -> None:
    """Runs a model once on zeros and refuses one that does not fit the data.

    Raises:
        RecipeError: it fails on inputs of that shape, or gives other than ``num_classes`` scores.
    """
    try:
        with evaluation_mode(model):
            output = model(torch.zeros(1, *input_shape, device=_device(model)))
    except Exception as error:  # a foreign model's forward may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RecipeError(
            f"model '{label}' cannot run on inputs of shape {tuple(input_shape)}: {reason}. "
            "Where it wants larger images, give it the option input_size, to which it then resizes them"
        ) from error
    scores = getattr(output, "logits", output)
    if not isinstance(scores, torch.Tensor) or scores.shape != (1, num_classes):
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise RecipeError(
            f"model '{label}' should give scores of shape (1, {num_classes}) for one sample, but gives {got}"
        )


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _created(label: str, fetches: bool, create: Any) -> Any:
    """Calls a library's constructor and says in one sentence what went wrong."""
    try:
        return create()
    except TypeError as error:
        raise RecipeError(f"model '{label}': {error}") from error
    except Exception as error:  # each library, and each network layer below it, has errors of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        if not fetches:
            raise RecipeError(f"model '{label}': {reason}") from error
        raise CheckpointError(
            f"'{label}' could not be loaded: {reason}. "
            "Without a network the files must be in the library's cache or in a folder"
        ) from error


def _replace_classifier(network: nn.Module, num_classes: int) -> None:
    """Gives a network a new last linear layer, unless it has the right number of classes."""
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise RecipeError(f"{type(network).__name__} has no linear classifier to give {num_classes} classes")
    name, last = linears[-1]
    if last.out_features == num_classes:
        return
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Linear(last.in_features, num_classes))


def _import_user_module(name: str, label: str) -> Any:
    """Imports a module, looking in the working directory too, as ``python -m`` does."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"model '{label}': {error}; it is looked for in {here}, in PYTHONPATH and among the installed packages"
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(f"model '{label}': importing {name} failed: {type(error).__name__}: {error}") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
