"""Weight files: safetensors in and out, tensors of PyTorch files in, never code; and the weights that limbeck ships."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.errors import CheckpointError, UnknownNameError, suggest

_SHIPPED = Path(__file__).parent / "weights"
_METADATA_KEY = "limbeck"
# Names under which training scripts keep the weights inside a larger checkpoint.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "model_ema")


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a model's parameters and buffers as safetensors; the file appears whole or not at all.

    Args:
        model: the model.
        path: the file, which is replaced.
        metadata: anything JSON can hold; :func:`read_metadata` returns it.

    Raises:
        CheckpointError: the file cannot be written (no such folder, disk full).
    """
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, {_METADATA_KEY: json.dumps(dict(metadata or {}))})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write weights to {path}: {error}") from error


def load_weights(model: nn.Module, where: str | Path, *, model_name: str = "", data_name: str = "") -> None:
    """Loads a model's parameters and buffers, all of them, each of the right shape.

    Args:
        model: the model, changed in place.
        where: a ``.safetensors`` file; a run folder, for the student it left; ``zoo``, for weights that come with
            limbeck; or a PyTorch file of plain tensors. A PyTorch file may hold the weights under ``state_dict``,
            ``model`` or the like, and their names may begin with ``module.`` as a data-parallel wrapper leaves them.
        model_name: the model's name in the zoo, for ``zoo``.
        data_name: the data set it was trained on, for ``zoo``.

    Raises:
        UnknownNameError: no such weights come with limbeck.
        CheckpointError: the file is missing, corrupt, holds more than plain tensors, or does not fit the model.
    """
    path = zoo_weights(model_name, data_name) if str(where) == "zoo" else Path(where)
    if path.is_dir():
        path = path / "student.safetensors"
    tensors = _read_tensors(path)
    problems = _misfits(tensors, model.state_dict())
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:8])}{more}")
    model.load_state_dict(tensors)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Returns what :func:`save_weights` was given as ``metadata``; empty for files of other origin.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def shipped_weights() -> list[str]:
    """Names ``<model>-<data>`` of the weights that come with limbeck."""
    return sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))


def zoo_weights(model_name: str, data_name: str) -> Path:
    """Returns the file of shipped weights that were trained with a model of the zoo on a data set.

    Beside it lies a model card ``<model>-<data>.json`` with data, recipe, accuracy, licence and the file's ``sha256``.

    Raises:
        UnknownNameError: no such weights are shipped; the message lists those that are.
        CheckpointError: the file is not the one that its card describes.
    """
    name = f"{model_name}-{data_name}"
    path = _SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownNameError(
            f"no weights of '{model_name}' trained on '{data_name}' come with limbeck. "
            f"{suggest(name, shipped_weights())} Name a .safetensors file or a run folder, or train the model first"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != model_card(path)["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum is not the one in its model card; reinstall limbeck")
    return path


def model_card(weights: str | Path) -> dict[str, Any]:
    """Returns the model card beside a file of shipped weights.

    Raises:
        CheckpointError: there is no readable card.
    """
    path = Path(weights).with_suffix(".json")
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the model card {path} cannot be read: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    try:
        # The kind is told by content: safetensors begin with the length of a JSON header.
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        found = load_file(path) if is_safetensors else _read_torch(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if found and all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, of no use to whoever gets the error
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a malformed stream leads it to
        raise CheckpointError(
            f"{path} is refused: it is damaged, or a pickle that holds more than plain tensors and could run code. "
            f"Save the weights as safetensors instead ({_first_line(error)})"
        ) from error
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
        if inner and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in inner.items()):
            return dict(inner)
    raise CheckpointError(f"{path} holds no weights by name; it should hold a state_dict, and as safetensors best")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Returns a phrase for each tensor that is missing, superfluous or of another shape."""
    extra = [name for name in found if name not in expected]
    phrases = [
        f"'{name}' is {list(found[name].shape)} in the file but {list(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    for name in expected:
        if name not in found:
            phrases.append(f"'{name}' is missing. {suggest(name, extra, show=3)}" if extra else f"'{name}' is missing")
    phrases += [f"'{name}' is not in the model. {suggest(name, expected, show=3)}" for name in extra]
    return phrases
