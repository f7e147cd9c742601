"""Errors that name the cause and the fix.

Every error that limbeck raises on purpose is a :class:`LimbeckError`; the command prints its message without a
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LimbeckError(Exception):
    """Base of every error raised on purpose."""


class RecipeError(LimbeckError, ValueError):
    """A recipe, an override or a hyperparameter is malformed or out of range."""


class UnknownNameError(RecipeError):
    """A name that no registry, data set, model or module tree knows."""


class TapError(LimbeckError, ValueError):
    """A tap path matches nothing, or comes too late to take effect."""


class NeedsError(LimbeckError, ValueError):
    """A method needs a signal, a batch entry or a role that the stage does not provide."""


class DataError(LimbeckError, ValueError):
    """A data set is missing, empty or inconsistent."""


class CacheError(LimbeckError, ValueError):
    """A cache is corrupt or was written for something else."""


class RemoteError(LimbeckError, RuntimeError):
    """A server refuses a request, or does not answer as it should."""


class UnreachableError(RemoteError):
    """A server does not answer at all, or lets this client ask nothing."""


class CostLimitError(LimbeckError, RuntimeError):
    """What may be spent on a server is spent."""


class CheckpointError(LimbeckError, ValueError):
    """A checkpoint or weight file is corrupt, foreign or hostile."""


class RunFolderError(LimbeckError, OSError):
    """A run folder is in use, of another version, or cannot be written."""


class TeacherChangedError(LimbeckError, RuntimeError):
    """A frozen role's parameters or buffers differ from what they were when the stage began."""


class NonFiniteLossError(LimbeckError, ArithmeticError):
    """A loss term became NaN or infinite."""


class RewardError(LimbeckError, RuntimeError):
    """A reward failed on a completion, or gave something that is no finite number."""


class MissingExtraError(LimbeckError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'; install it with: pip install 'limbeck[{extra}]'")


def suggest(name: str, known: Iterable[str], *, show: int = 12) -> str:
    """Returns a sentence that proposes near matches of ``name`` among ``known``, or lists some of ``known``."""
    names = sorted({str(k) for k in known})
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    if not names:
        return "None are known."
    more = f", ... ({len(names)} in all)" if len(names) > show else ""
    return "Known: " + ", ".join(names[:show]) + more + "."
