"""Names for parts.

A decorator registers a part; the command line, the documentation and the tests find it by themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from limbeck.errors import UnknownNameError, suggest

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered part and what is known of it.

    Attributes:
        name: the name in recipes.
        part: the class or function.
        about: facts given at registration (for methods ``paper``, ``title``, ``family`` ...).
    """

    name: str
    part: T
    about: dict[str, Any]


class Registry(Generic[T]):
    """A set of named parts whose modules are imported at the first look-up.

    Args:
        kind: what the parts are, in the singular, for error messages.
        package: dotted name of the package whose modules (all levels) register parts when imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(self, name: str, **about: Any) -> Callable[[T], T]:
        """Returns a decorator that registers its argument under ``name``.

        Raises:
            ValueError: the name is taken by another part.
        """

        def decorate(part: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and _identity(taken.part) != _identity(part):
                raise ValueError(f"the {self.kind} name '{name}' is taken by {_identity(taken.part)}")
            self._entries[name] = Entry(name, part, about)
            return part

        return decorate

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.walk_packages(package.__path__, self._package + "."):
            importlib.import_module(module.name)
        self._loaded = True

    def __getitem__(self, name: str) -> Entry[T]:
        """Returns the entry called ``name``.

        Raises:
            UnknownNameError: no part has that name; the message proposes near matches.
        """
        if name not in self._entries:
            self._load()
        if name not in self._entries:
            raise UnknownNameError(f"unknown {self.kind} '{name}'. {suggest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def entries(self) -> list[Entry[T]]:
        """All entries, by name."""
        return [self._entries[name] for name in self]


def _identity(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', part)}"
