"""limbeck distils large models into small ones: every published method behind one small set of parts.

Example:
    >>> import limbeck
    >>> sorted(limbeck.__all__)
    ['distill', 'evaluate', 'functional', 'run_recipe']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck import functional as functional
    from limbeck.distillation import distill as distill
    from limbeck.evaluate import evaluate as evaluate
    from limbeck.recipes.run import run_recipe as run_recipe

__version__ = "0.1.0"

# Resolved at first use, so that `import limbeck` and `limbeck --help` load neither PyTorch nor anything else.
_HOMES = {
    "distill": ("limbeck.distillation", "distill"),
    "evaluate": ("limbeck.evaluate", "evaluate"),
    "functional": ("limbeck.functional", None),
    "run_recipe": ("limbeck.recipes.run", "run_recipe"),
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    loaded = importlib.import_module(module)
    # A submodule of the same name would otherwise shadow the function once it is imported.
    globals()[name] = value = loaded if attribute is None else getattr(loaded, attribute)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
