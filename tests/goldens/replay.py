"""Reads a golden file, runs the adapter of its method in float64 and compares every ``out.*`` and ``grad.*``.

A golden file is an ``.npz`` with a JSON string ``meta`` (method, config, notes, tolerance) and arrays ``in.*``,
``out.*`` and ``grad.*``. An adapter is a function in any module of :mod:`goldens`, decorated with :func:`replays`; it
takes a :class:`Case`, drives the method class that users run, and returns what it computed by the names of the file.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UnknownNameError, suggest

Adapter = Callable[["Case"], Mapping[str, Any]]

_ADAPTERS: dict[str, Adapter] = {}
_NUMBER = r"(\d+(?:\.\d+)?e-\d+)"


def replays(*names: str) -> Callable[[Adapter], Adapter]:
    """Registers an adapter for golden files by their ``short_name`` or, where there is none, their ``method``."""

    def decorate(adapter: Adapter) -> Adapter:
        for name in names:
            if name in _ADAPTERS:
                raise ValueError(f"two adapters replay '{name}'")
            _ADAPTERS[name] = adapter
        return adapter

    return decorate


def adapter_for(name: str) -> Adapter:
    """Returns the adapter of a method.

    Where what follows the colon of "method: variant" is new, it is that of the method's other variants.

    Raises:
        UnknownNameError: none replays it.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"goldens.{module.name}")
    if name not in _ADAPTERS:
        method, colon, _ = name.partition(":")
        related = {adapter for other, adapter in _ADAPTERS.items() if other.startswith(method + ":")}
        if colon and len(related) == 1:
            return related.pop()
        raise UnknownNameError(f"no adapter replays the method '{name}'. {suggest(name, _ADAPTERS, show=40)}")
    return _ADAPTERS[name]


class Case:
    """One golden file.

    Attributes:
        path: the file.
        name: ``short_name`` of the method, or its ``method`` where the file has no short name.
        config: hyperparameters.
        notes: what the file says about conventions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays = _read(path)
        self.meta: dict[str, Any] = json.loads(str(self._arrays.pop("meta")[()]))
        self.name = str(self.meta.get("short_name") or self.meta.get("method"))
        self.config: dict[str, Any] = _Config(self.meta.get("config", {}), path)
        self.notes = str(self.meta.get("notes", ""))

    def __contains__(self, name: str) -> bool:
        return f"in.{name}" in self._arrays

    def input(self, name: str, requires_grad: bool = False) -> Tensor:
        """Returns the input ``in.<name>`` as a new leaf: float64, or int64 for integers."""
        if name not in self:
            raise DataError(f"{self.path.name} has no input '{name}'. {suggest(name, self.input_names())}")
        tensor = torch.from_numpy(np.array(self._arrays[f"in.{name}"]))
        tensor = tensor.to(torch.float64) if tensor.is_floating_point() else tensor.long()
        return tensor.requires_grad_(requires_grad)

    def input_names(self, prefix: str = "") -> list[str]:
        """Names of the inputs that start with ``prefix``, without the leading ``in.``."""
        names = [key.removeprefix("in.") for key in self._arrays if key.startswith("in.")]
        return [name for name in names if name.startswith(prefix)]

    def numbered(self, prefix: str, requires_grad: bool = False) -> dict[str, Tensor]:
        """Returns the inputs ``<prefix>0``, ``<prefix>1`` ... in numeric order, by name."""
        found = {
            int(m[1]): m[0] for n in self.input_names(prefix) if (m := re.fullmatch(re.escape(prefix) + r"(\d+)", n))
        }
        return {found[i]: self.input(found[i], requires_grad) for i in sorted(found)}

    def expected(self) -> dict[str, np.ndarray]:
        """The reference arrays ``out.*`` and ``grad.*`` by full name."""
        return {key: value for key, value in self._arrays.items() if key.startswith(("out.", "grad."))}

    def wants(self, key: str) -> bool:
        """Whether the file holds the reference array ``key`` (a full name such as ``out.loss``)."""
        return key in self._arrays

    def tolerance(self) -> tuple[float, float]:
        """Relative and absolute tolerance: the file's, loosened only where its notes say so for this case."""
        stated = str(self.meta.get("tolerance", ""))
        rtol = _first(r"rtol\s*" + _NUMBER, stated, 1e-9)
        atol = _first(r"atol\s*" + _NUMBER, stated, 1e-12)
        for sentence in re.split(r"(?<=[.;])\s+", f"{self.notes}. {self.meta.get('cross_check', '')}"):
            other = re.search(r"\b[Cc]ase ([a-z])\b", sentence)
            if other is not None and other[1] != self.meta.get("case"):
                continue
            for pattern in (r"rtol\s*" + _NUMBER, r"\(" + _NUMBER + r" here\)"):
                rtol = max(rtol, _first(pattern, sentence, rtol))
            atol = max(atol, _first(r"atol\s*" + _NUMBER, sentence, atol))
        return rtol, atol

    def load_into(self, module: nn.Module, names: Mapping[str, str]) -> dict[str, nn.Parameter]:
        """Copies inputs into parameters or buffers of ``module``, in float64.

        Args:
            module: what receives them; converted to float64 in place.
            names: name of the input -> dotted name in ``module``.

        Returns:
            Those that are parameters, by the name of the input (ready for :func:`gradients`).
        """
        module.double()
        parameters: dict[str, nn.Parameter] = {}
        with torch.no_grad():
            for source, target in names.items():
                owner, _, leaf = target.rpartition(".")
                slot = getattr(module.get_submodule(owner), leaf)
                value = self.input(source)
                if slot.shape != value.shape:
                    raise DataError(
                        f"{self.path.name}: in.{source} is {tuple(value.shape)} but {target} is {tuple(slot.shape)}"
                    )
                slot.copy_(value)
                if isinstance(slot, nn.Parameter):
                    parameters[source] = slot
        return parameters


class _Config(dict[str, Any]):
    """Hyperparameters of a file; one that is missing is an error that names the file."""

    def __init__(self, entries: Mapping[str, Any], path: Path) -> None:
        super().__init__(entries)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise DataError(f"{self._path.name} has no '{name}' in its config. {suggest(name, self)}")


def gradients(loss: Tensor, leaves: Mapping[str, Tensor], suffix: str = "") -> dict[str, Tensor]:
    """Returns ``grad.<name><suffix>`` of a scalar loss for every leaf; zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {
        f"grad.{name}{suffix}": torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found)
    }


@dataclass(frozen=True)
class Comparison:
    """Result for one reference array."""

    name: str
    error: float | None
    ok: bool

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.name}  uncovered  FAIL"
        return f"{self.name}  {self.error:.3e}  {'OK' if self.ok else 'FAIL'}"


def replay(path: str | Path) -> Iterator[Comparison]:
    """Yields a comparison for every ``out.*`` and ``grad.*`` of a golden file.

    Raises:
        UnknownNameError: no adapter replays the file's method.
        DataError: the file cannot be read or lacks an input.
    """
    case = Case(Path(path))
    computed = adapter_for(case.name)(case)
    rtol, atol = case.tolerance()
    for name, reference in case.expected().items():
        yield _compare(name, computed.get(name), reference, rtol, atol)


def _compare(name: str, computed: Any, reference: np.ndarray, rtol: float, atol: float) -> Comparison:
    if computed is None:
        return Comparison(name, None, False)
    ours = np.asarray(computed.detach().numpy() if isinstance(computed, Tensor) else computed, dtype=np.float64)
    theirs = reference.astype(np.float64)
    if ours.shape != theirs.shape:
        return Comparison(name, float("inf"), False)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(ours - theirs))
    error = np.where(np.isnan(error), np.inf, error)
    ok = bool((same | (error <= atol + rtol * np.abs(theirs))).all())
    return Comparison(name, float(error.max(initial=0.0)), ok)


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not a golden file: an .npz archive is expected")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable golden file: {error}") from error
    if "meta" not in arrays:
        raise DataError(f"{path} has no 'meta' entry, so its method is unknown")
    return arrays


def _first(pattern: str, text: str, default: float) -> float:
    found = re.search(pattern, text)
    return default if found is None else float(found[1])
