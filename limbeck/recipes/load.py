"""From a YAML file and overrides to a checked :class:`~limbeck.recipes.schema.Recipe`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from limbeck.errors import RecipeError, UnknownNameError, suggest
from limbeck.hyperparameters import explain_validation
from limbeck.recipes.schema import Recipe, StageSpec

STAGE_KEYS = (*StageSpec.model_fields, "methods")


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data only, and refuses what YAML would pass over in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that is given twice, of which YAML would keep the last."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses aliases, with which a few lines can stand for more data than fits in memory."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias '*{event.anchor}' is not supported", event.start_mark
            )
        return super().compose_node(parent, index)


def shipped() -> list[str]:
    """Names of the recipes that come with limbeck."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("limbeck.recipes").iterdir() if p.name.endswith(".yaml")
    )


def load_recipe(where: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe from a file, a shipped recipe's name, or a mapping, and applies ``key=value`` overrides.

    Raises:
        RecipeError: the file is not a recipe, a key is unknown or a value is out of range; the message names the key
            and near matches.
    """
    data = with_overrides(dict(where) if isinstance(where, Mapping) else read_mapping(where), overrides)
    single = "stages" not in data
    try:
        return _check(_stages_spelled_out(data), str(where) if not isinstance(where, Mapping) else "recipe")
    except RecipeError as error:
        # A person who wrote one stage should not read about stage 0.
        raise RecipeError(str(error).replace("stages.0.", "") if single else str(error)) from None


def shipped_comparisons() -> list[str]:
    """Names of the comparisons of language models that come with limbeck, such as ``lm/quickstart``."""
    folder = resources.files("limbeck.recipes") / "lm"
    return sorted(f"lm/{p.name.removesuffix('.yaml')}" for p in folder.iterdir() if p.name.endswith(".yaml"))


def read_mapping(where: str | Path) -> dict[str, Any]:
    """Returns what a recipe file, or a file that limbeck ships, holds.

    Raises:
        UnknownNameError: there is no such file and none is shipped under that name.
        RecipeError: it is not plain YAML, or no mapping.
    """
    path = Path(where)
    if not path.is_file():
        name = str(where).removesuffix(".yaml").removeprefix("recipes/")
        known = [*shipped(), *shipped_comparisons()]
        if name not in known:
            raise UnknownNameError(
                f"no recipe file '{where}' and no shipped recipe of that name. {suggest(name, known)}"
            )
        text = (resources.files("limbeck.recipes") / f"{name}.yaml").read_text("utf-8")
    else:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe '{where}' cannot be read: {error}") from None
    try:
        data = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"the recipe '{where}' is not plain YAML: {problem}") from None
    if not isinstance(data, dict):
        raise RecipeError(
            f"the recipe '{where}' should be a mapping with keys such as data, roles, method; "
            f"it is {type(data).__name__}"
        )
    return data


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns a copy of nested data with ``a.b.0.c=value`` overrides applied.

    Raises:
        RecipeError: an override is malformed or reaches where nothing is.
    """
    changed = copy.deepcopy(dict(data))
    for override in overrides:
        _override(changed, override)
    return changed


def _override(data: dict[str, Any], override: str) -> None:
    """Sets ``a.b.0.c=value`` in nested data; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"an override is written key=value, for example train.lr=0.05; got '{override}'")
    try:
        value = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RecipeError(f"the value of '{override}' is not plain YAML: {' '.join(str(error).split())}") from None
    *parents, last = key.strip().split(".")
    node: Any = data
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif isinstance(node, dict):
        node.pop({"method": "methods", "methods": "method"}.get(last, ""), None)
        node[last] = value
    else:
        raise RecipeError(f"'{override}' reaches into {node!r}, which has no keys")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, override)]
    if not isinstance(node, dict):
        raise RecipeError(f"'{override}' reaches into {node!r}, which has no keys")
    child = node.setdefault(part, {})
    if part in ("data", "method", "model") and isinstance(child, str):
        child = node[part] = {"name": child}
    return child


def _position(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(f"'{override}': a list of {len(node)} has no position '{part}'")
    return int(part)


def _stages_spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """Writes out the short forms: a recipe without ``stages`` has one; later stages inherit from the first."""
    if "stages" not in data:
        first = {k: data.pop(k) for k in STAGE_KEYS if k in data}
        return {**data, "stages": [_normalised(first)]}
    stages = data["stages"]
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        raise RecipeError("`stages` should be a list of mappings, one a stage")
    shared = _normalised({k: data.pop(k) for k in STAGE_KEYS if k in data})
    complete: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        base = _merged(shared, complete[0] if complete else {})
        base.pop("name", None)
        merged = _merged(base, _normalised(stage))
        merged.setdefault("name", f"stage{number + 1}")
        complete.append(merged)
    return {**data, "stages": complete}


def _normalised(stage: dict[str, Any]) -> dict[str, Any]:
    """Turns ``data: name``, ``method: name``, ``methods: [...]`` and ``roles: {r: name}`` into mappings."""
    stage = dict(stage)
    for key in ("data", "method"):
        if isinstance(stage.get(key), str):
            stage[key] = {"name": stage[key]}
    if "methods" in stage:
        if "method" in stage:
            raise RecipeError("a stage has either `method` or `methods`, a list of those used at once")
        stage["method"] = {"methods": stage.pop("methods")}
    roles = stage.get("roles")
    if isinstance(roles, dict):
        stage["roles"] = {r: {"model": s} if isinstance(s, str) else s for r, s in roles.items()}
    return stage


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe with one stage over which some sections of another were laid, as a later stage's are."""
    return _merged(_normalised(dict(base)), _normalised(dict(over)))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lays a stage over what it inherits: sections merge by key, unless they name another part."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        inherited = result.get(key)
        if key == "roles" and isinstance(value, dict) and isinstance(inherited, dict):
            result[key] = {**inherited, **value}
        elif key in ("data", "train", "method") and isinstance(value, dict) and isinstance(inherited, dict):
            several = "methods" in value or "methods" in inherited
            same = not several and ("name" not in value or value.get("name") == inherited.get("name"))
            result[key] = {**inherited, **value} if same else value
        else:
            result[key] = value
    return result


def _check(data: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise explain_validation(error, f"recipe '{origin}'", _known_keys(error)) from None
    except RecursionError:
        raise RecipeError(f"the recipe '{origin}' is nested too deeply") from None


def _known_keys(error: ValidationError) -> list[str]:
    """Keys that may stand where the first unknown key stands."""
    top = {**Recipe.model_fields, **StageSpec.model_fields}
    unknown = next((item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"), ())
    fields = top
    for part in unknown[:-1]:
        if part in fields:  # Places in lists, and names that users give, lead no deeper.
            models = _models_in(fields[str(part)].annotation)
            fields = {key: field for model in models for key, field in model.model_fields.items()}
    return [*fields, "methods"] if fields is top else list(fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns the models that a value with this annotation may be, or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def as_plain(recipe: Recipe) -> dict[str, Any]:
    """Returns the resolved recipe as plain data, as it is written into the run folder."""
    return recipe.model_dump(mode="json", exclude_none=True)
