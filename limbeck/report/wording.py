"""Puts types, ranges, defaults and weights into words, as a recipe writes them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from limbeck.schedules import During, Warmup

_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "anything"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts", bool: "truth values"}
_SIGNS = {Gt: (">", "gt"), Ge: ("≥", "ge"), Lt: ("<", "lt"), Le: ("≤", "le")}


def describe_type(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """Returns what values an annotation allows.

    Args:
        annotation: a type, with its range where it is ``Annotated``.
        bounds: further bounds, as pydantic keeps them beside the type of a field.

    Example:
        >>> describe_type(Annotated[float, Gt(0)])
        'number > 0'
        >>> describe_type(tuple[Annotated[int, Ge(1)], ...] | None)
        'list of whole numbers ≥ 1, or null'
        >>> describe_type(Literal["exact", "relax"])
        'exact or relax'
    """
    if typing.get_origin(annotation) is Annotated:
        inner, *metadata = typing.get_args(annotation)
        return describe_type(inner, [*metadata, *bounds])
    signs = _in_words(bounds)
    alternatives = _alternatives(annotation)
    if alternatives:
        said = [describe_type(a) + (signs if a is not type(None) else "") for a in alternatives]
        return _joined(said)
    return _kind(annotation) + signs


def describe_default(value: Any) -> str:
    """Returns a default as a recipe writes it.

    Example:
        >>> describe_default((3.0, 5.0)), describe_default(None), describe_default(30 / 270)
        ('[3, 5]', 'null', '0.1111')
    """
    return (
        yaml.safe_dump(_rounded(value), default_flow_style=True, width=10_000, allow_unicode=True)
        .removesuffix("...\n")
        .strip()
    )


def describe_weight(weight: Any) -> str:
    """Returns the weight of a term, a number or a function of the progress, in words.

    Example:
        >>> describe_weight(Warmup(8.0))
        '8, growing linearly over the first 8.3 % of the run'
        >>> describe_weight(During(50.0, stop=0.25))
        '50 during the first 25 % of the stage, then 0'
    """
    if isinstance(weight, Warmup):
        length = f"{weight.fraction:.1%} of the run" if weight.epochs is None else f"{weight.epochs:g} epochs"
        return f"{weight.value:g}, growing linearly over the first {length.replace('%', ' %')}"
    if isinstance(weight, During):
        if weight.start <= 0:
            return f"{weight.value:g} during the first {_percent(weight.stop)} of the stage, then 0"
        if weight.stop >= 1:
            return f"0 during the first {_percent(weight.start)} of the stage, then {weight.value:g}"
        return f"{weight.value:g} from {_percent(weight.start)} to {_percent(weight.stop)} of the stage, otherwise 0"
    return str(weight) if callable(weight) else f"{weight:g}"


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _joined([str(a) for a in arguments])
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence(arguments)
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "mapping" if arguments[1] is Any else f"mapping to {describe_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mapping ({annotation.__name__})"
    return _PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _sequence(arguments: tuple[Any, ...]) -> str:
    if len(arguments) > 1 and arguments[1] is not Ellipsis:
        return "list of " + ", ".join(describe_type(a) for a in arguments)
    inner = arguments[0]
    base, bounds = (
        (typing.get_args(inner)[0], typing.get_args(inner)[1:])
        if typing.get_origin(inner) is Annotated
        else (inner, ())
    )
    if typing.get_origin(base) is dict or (isinstance(base, type) and issubclass(base, BaseModel)):
        return describe_type(base).replace("mapping", "list of mappings", 1)
    return f"list of {_MANY.get(base) or describe_type(base)}{_in_words(bounds)}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else ()


def _in_words(bounds: Iterable[Any]) -> str:
    said = [f"{_SIGNS[type(b)][0]} {getattr(b, _SIGNS[type(b)][1]):g}" for b in bounds if type(b) in _SIGNS]
    return f" {', '.join(said)}" if said else ""


def _joined(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    last = ", or " if any(" " in p for p in parts) or len(parts) > 2 else " or "
    return ", ".join(parts[:-1]) + last + parts[-1]


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _rounded(value: Any) -> Any:
    """Plain data with whole floats as integers and long fractions cut to four digits, as people write them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e9 else float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
