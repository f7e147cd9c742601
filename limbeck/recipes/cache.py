"""Writes the cache of a recipe's teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import RecipeError, suggest
from limbeck.recipes.build import build_cached_role, reads_text
from limbeck.recipes.load import load_recipe

_CODECS: dict[str, dict[str, Any]] = {
    "fp32": {"name": "full", "dtype": "float32"},
    "fp16": {"name": "full", "dtype": "float16"},
    "topk": {"name": "topk"},
}


def cache_recipe(
    recipe: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: Path,
    epochs: int | None = None,
    codec: str = "fp16",
    k: int = 10,
    draws: int = 50,
    role: str = "teacher",
    trust: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Writes what a role of the recipe's last stage says about every view of every training sample.

    Signals beside the logits that the recipe's method needs (features) are stored as well.

    Args:
        recipe: a file, the name of a shipped recipe or a mapping.
        overrides: ``key=value`` strings.
        out: folder of the cache; a killed call continues there.
        epochs: number of views; the recipe's epochs when None, or 1 where every epoch sees the same.
        codec: ``fp32``, ``fp16`` or ``topk``; for text also ``hidden`` and ``sampled``.
        k: classes kept by ``topk``.
        draws: tokens drawn by ``sampled``.
        role: the role to cache.
        trust: allow models that run the code they name.
        progress: called with the rows that are done and the rows in all.

    Returns:
        A paragraph about the finished cache.

    Raises:
        LimbeckError: the recipe cannot work, or the folder holds another cache; the message says what differs.
    """
    from limbeck.data.views import STATIC
    from limbeck.teachers.cache import describe, write_cache

    loaded = load_recipe(recipe, overrides)
    spec = loaded.stages[-1]
    if reads_text(spec):
        from limbeck.recipes.language import cache_text

        return cache_text(loaded, spec, role, out, codec, k=k, draws=draws, trust=trust, progress=progress)
    if codec not in _CODECS:
        raise RecipeError(f"unknown codec '{codec}'. {suggest(codec, _CODECS)}")
    teacher, loader, extras = build_cached_role(loaded, spec, role, trust=trust)
    static = loader.augmentation_key(0) == STATIC
    views = epochs if epochs is not None else 1 if static else spec.train.epochs
    options = {**_CODECS[codec], **({"k": k} if codec == "topk" else {})}
    dtype: Literal["float32", "float16"] = "float32" if codec == "fp32" else "float16"
    write_cache(
        out,
        loader=loader,
        teacher=teacher,
        epochs=views,
        codec=options,
        extras=extras,
        extras_dtype=dtype,
        role=role,
        progress=progress,
    )
    return describe(out)
