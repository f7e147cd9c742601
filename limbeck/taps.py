"""Named places inside a model whose tensors become signals.

A tap path is a module path as in ``model.named_modules()``. ``*`` stands for one component
(``encoder.layer.*.output``), an ending ``@in`` means the module's first input instead of its output (``fc@in``), and
``.`` is the model itself. Taps are hooks on the module instance, so they must be set before ``torch.compile`` wraps
the model; one set afterwards would never fire, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import TapError, suggest

_INPUT = "@in"


def resolve(model: nn.Module, path: str) -> list[str]:
    """Returns the concrete tap paths that ``path`` stands for, in the model's order.

    Raises:
        TapError: nothing matches; the message proposes near matches.
    """
    base, at_input = (path[: -len(_INPUT)], _INPUT) if path.endswith(_INPUT) else (path, "")
    names = [name for name, _ in model.named_modules()]
    if base in (".", ""):
        return ["." + at_input]
    pattern = re.compile(re.escape(base).replace(r"\*", r"[^.]+") + r"\Z")
    found = [name for name in names if pattern.match(name)]
    if not found:
        raise TapError(
            f"no module of {type(model).__name__} matches the tap '{path}'. {suggest(base, [n for n in names if n])}"
        )
    return [name + at_input for name in found]


class Taps:
    """Hooks that collect tensors while a model runs.

    Args:
        model: the model, before ``torch.compile`` or a distributed wrapper.
        groups: tap paths by group, each group from shallow to deep.

    Raises:
        TapError: a path matches nothing, or the model is compiled already.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, Sequence[str]]) -> None:
        _refuse_compiled(model)
        self.groups = {group: [p for path in paths for p in resolve(model, path)] for group, paths in groups.items()}
        paths = [path for group in self.groups.values() for path in group]
        self._caught: dict[str, list[tuple[Tensor, int | None]]] = {path: [] for path in paths}
        self._listening = False
        self._handles = [self._hook(model, path) for path in self._caught]

    def _hook(self, model: nn.Module, path: str) -> Any:
        base = path.removesuffix(_INPUT)
        module = model if base == "." else model.get_submodule(base)
        if path.endswith(_INPUT):
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: self._catch(path, (*args, *kwargs.values())), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, __, output: self._catch(path, output))

    def _catch(self, path: str, value: Any) -> None:
        if self._listening:
            tensor = _tensor(value, path)
            self._caught[path].append((tensor, _version(tensor)))

    def listen(self) -> None:
        """Starts to collect. Until :meth:`collect` the model should run once; passes outside leave nothing behind."""
        self.forget()
        self._listening = True

    def collect(self) -> dict[str, tuple[Tensor, ...]]:
        """Returns what the forward pass since :meth:`listen` left, by group, and forgets it.

        Raises:
            TapError: a tapped module did not run, or ran more than once, or what it gave was overwritten afterwards.
        """
        caught = {path: list(tensors) for path, tensors in self._caught.items()}
        self.forget()
        for path, tensors in caught.items():
            if len(tensors) != 1:
                raise TapError(
                    f"the tapped module '{path}' ran {len(tensors)} times in one forward pass instead of once; "
                    "tap a module that runs once"
                )
            tensor, version = tensors[0]
            if version is not None and tensor._version != version:
                raise TapError(
                    f"what the tap '{path}' saw was overwritten by a later module that works in place; "
                    "set that module's `inplace` to False (an activation, mostly), or tap the model after it"
                )
        return {group: tuple(caught[path][0][0] for path in paths) for group, paths in self.groups.items()}

    def forget(self) -> None:
        """Stops to collect and drops what was collected."""
        self._listening = False
        for tensors in self._caught.values():
            tensors.clear()

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def untap(copied: nn.Module) -> None:
    """Removes the taps that a copy of a tapped model inherited: they would give the copy's tensors to the original."""
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__module__", None) == __name__:
                    del hooks[key]


def _version(tensor: Tensor) -> int | None:
    """Returns how often a tensor was written to; None where nobody counts: in compiled graphs and inference mode."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def _tensor(value: Any, path: str) -> Tensor:
    """Returns the first tensor in what a module took or gave."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for item in items:
        if isinstance(item, Tensor):
            return item
    kind = type(value).__name__
    raise TapError(f"the tapped module '{path}' gives {kind}, which holds no tensor; tap a module inside it")


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise TapError(
                f"'{name or type(model).__name__}' is compiled already, so a tap would never fire: "
                "give limbeck the plain model and let it compile (train.compile: true)"
            )
