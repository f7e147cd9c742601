"""The reference of recipes, from their schema, and the recipes that are shipped."""

from __future__ import annotations

from importlib import resources

from pydantic import BaseModel

from limbeck.engine.settings import TrainSettings
from limbeck.recipes.load import load_recipe, shipped
from limbeck.recipes.schema import DataSpec, EMASpec, Recipe, RoleSpec, StageSpec
from limbeck.report.wording import describe_default, describe_type

from .markup import code, table

_SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "The whole recipe": (Recipe, ""),
    "A stage": (StageSpec, "A recipe with one stage writes these keys at its top, without `stages`."),
    "data": (DataSpec, "`data: NAME` is short for `data: {name: NAME}`."),
    "roles": (RoleSpec, "One entry a role. `student: NAME` is short for `student: {model: NAME}`."),
    "ema of a role": (EMASpec, ""),
    "train": (TrainSettings, ""),
}
_PLACES = {model.__name__: title for title, (model, _) in _SECTIONS.items()}


def schema_reference() -> str:
    """Returns a table a section of the recipe's schema."""
    parts = []
    for title, (model, note) in _SECTIONS.items():
        heading = f"### `{title}`" if title.islower() and " " not in title else f"### {title}"
        parts.append("\n\n".join(p for p in (heading, note, _fields(model)) if p))
    return "\n\n".join(parts)


def _fields(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        default = (
            "required" if field.is_required() else f"`{describe_default(field.get_default(call_default_factory=True))}`"
        )
        values = describe_type(field.annotation, field.metadata)
        for other, place in _PLACES.items():
            values = values.replace(f"({other})", f"([{place}](#{place.lower().replace(' ', '-')}))")
        rows.append([f"`{name}`", default, values, field.description or ""])
    return table(["Key", "Default", "Values", "Meaning"], rows)


def shipped_recipes() -> str:
    """Returns every shipped recipe: what it is about, which methods it uses, its text."""
    parts = []
    for shown in shipped():
        recipe = load_recipe(shown)
        names = dict.fromkeys(name for stage in recipe.stages for name in stage.method_names)
        used = ", ".join(f"[`{m}`](methods/{m}.md)" for m in names)
        text = (resources.files("limbeck.recipes") / f"{shown}.yaml").read_text("utf-8")
        anchor = shown.replace("_", "-")
        parts.append(
            f"### `{shown}` {{ #{anchor} }}\n\n{recipe.about or shown}. Method: {used}.\n\n{code(text, 'yaml')}"
        )
    return "\n\n".join(parts)
