"""Types that state a hyperparameter's range, so that a value outside it is refused with its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

from limbeck.errors import RecipeError, suggest

if TYPE_CHECKING:
    from pydantic import BaseModel

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]
WholeNumber = Annotated[int, Ge(0)]

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound="BaseModel")


def explain_validation(error: Any, owner: str, known: list[str]) -> RecipeError:
    """Turns a pydantic ``ValidationError`` into one sentence a person can act on."""
    parts = []
    for item in error.errors():
        where = ".".join(str(p) for p in item["loc"]) or "value"
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            parts.append(f"unknown key '{where}'. {suggest(str(item['loc'][-1]), known)}")
        elif item["type"] in ("missing_keyword_only_argument", "missing_argument", "missing"):
            parts.append(f"'{where}' is missing")
        else:
            parts.append(f"'{where}' = {item.get('input')!r}: {item['msg']}")
    return RecipeError(f"{owner}: " + "; ".join(parts))


def validated_model(model: type[M], values: dict[str, Any], owner: str) -> M:
    """Returns a pydantic ``model`` made of ``values``.

    Raises:
        RecipeError: a key is unknown or a value is out of range; the message names it.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain_validation(error, owner, list(model.model_fields)) from None


def validated(owner: str, function: F) -> F:
    """Wraps ``function`` so that its keyword arguments are checked against their annotations.

    Raises:
        RecipeError: a keyword is unknown, of a wrong type or out of its range; the message names it.
    """
    from pydantic import ConfigDict, ValidationError, validate_call

    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))(function)
    known = [n for n in inspect.signature(function).parameters if n != "self"]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except ValidationError as error:
            raise explain_validation(error, owner, known) from None

    return call  # type: ignore[return-value]
