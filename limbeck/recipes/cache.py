"""Writes the cache of a recipe's teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.data.loader import Loader
from limbeck.engine.preflight import tap_groups
from limbeck.engine.roles import prefers_channels_last
from limbeck.errors import RecipeError, suggest
from limbeck.recipes.load import load_recipe
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import Recipe, StageSpec
from limbeck.recipes.stage_data import build_data
from limbeck.recipes.stage_roles import RoleBuilder, required_model
from limbeck.recipes.task_section import make_task, reads_text
from limbeck.teachers.live import FrozenTeacher
from limbeck.transforms import build_transform

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
    draws: int = 40,
    independent: bool = False,
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
        independent: whether ``sampled`` draws each token by itself, as published with 50 draws, and not by a comb.
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

        drawn = {"draws": draws, "independent": independent, "seed": loaded.seed}
        known: dict[str, dict[str, Any]] = {"topk": {"k": k}, "sampled": drawn}
        return cache_text(loaded, spec, role, out, codec, known.get(codec, {}), trust=trust, progress=progress)
    if codec not in _CODECS:
        raise RecipeError(f"unknown codec '{codec}'. {suggest(codec, _CODECS)}")
    teacher, loader, extras = _cached_role(loaded, spec, role, trust=trust)
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


def _cached_role(
    recipe: Recipe, spec: StageSpec, role: str, *, trust: bool = False
) -> tuple[FrozenTeacher | Any, Loader, list[str]]:
    """Returns a role's provider, a loader in dataset order, and which signals beside logits a cache should store.

    Raises:
        RecipeError: the recipe has no such role, or it is trained.
    """
    if role not in spec.roles:
        raise RecipeError(f"the recipe has no role '{role}' to cache. {suggest(role, spec.roles)}")
    method, _ = make_method(spec.method)
    if role in method.learners:
        raise RecipeError(
            f"the role '{role}' is trained by '{spec.method_name}', so its outputs change and cannot be cached"
        )
    data = build_data(spec.data, spec, recipe.seed, view_names=method.needs.views, shuffle=False)
    task = make_task(spec.task, data)
    for entry in spec.transforms:
        change = build_transform(entry, seed=recipe.seed, num_classes=data.train.info.num_classes, trust=trust)
        if "inputs" in change.changes:
            name = entry if isinstance(entry, str) else entry["name"]
            raise RecipeError(
                f"the transform '{name}' changes samples after their augmentation, so no run with it could read this "
                "cache; leave it out, `transforms=[]`, or train with a live teacher"
            )
    made = RoleBuilder(recipe, spec, data, task, trust, None).build(role, spec.roles[role])
    if made.provider is not None:
        return made.provider, data.loader, []
    groups = tap_groups(role, required_model(made.model), method.needs.groups(role), made.taps)
    chosen = spec.train.channels_last
    autocast = torch.bfloat16 if (made.precision or spec.train.precision) == "bf16" else None
    teacher = FrozenTeacher(
        role,
        required_model(made.model),
        task,
        groups,
        method.needs.views,
        autocast=autocast,
        channels_last=prefers_channels_last(required_model(made.model)) if chosen is None else chosen,
    )
    return teacher, data.loader, sorted(method.needs.roles.get(role, frozenset()) - {"logits"})
