"""Weights of loss terms as a recipe writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import RecipeError
from limbeck.hyperparameters import Fraction, NonNegative, validated_model
from limbeck.schedules import During, Ramp, Warmup, Weight


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Constant(_Strict):
    value: NonNegative


class _Warmup(_Constant):
    warmup_epochs: NonNegative


class _During(_Constant):
    start: Fraction = 0.0
    stop: Fraction = 1.0


class _Ramp(_Strict):
    first: NonNegative = Field(alias="from")
    last: NonNegative = Field(alias="to")
    shape: Literal["linear", "cosine"] = "linear"
    start: Fraction = 0.0
    stop: Fraction = 1.0


def weight_from(spec: Any, origin: str) -> Weight:
    """Returns the weight that a recipe describes.

    A number stays as it is. A mapping is ``{value, warmup_epochs}``, ``{value, start, stop}`` or
    ``{from, to, shape, start, stop}``, where ``start`` and ``stop`` are fractions of the stage.

    Args:
        spec: the description.
        origin: where it stands, for error messages.

    Raises:
        RecipeError: it is neither, a key is unknown or a number is out of range.

    Example:
        >>> weight_from({"from": 1.0, "to": 0.0, "stop": 0.5}, "weights.kd")
        Ramp(first=1.0, last=0.0, shape='linear', start=0.0, stop=0.5)
    """
    if not isinstance(spec, Mapping):
        if isinstance(spec, (bool, str)):
            raise RecipeError(f"{origin} should be a number from 0 on, or a mapping such as {{value: 1.0, stop: 0.5}}")
        return validated_model(_Constant, {"value": spec}, origin).value
    given = {str(key): value for key, value in spec.items()}
    if "from" in given or "to" in given:
        ramp = validated_model(_Ramp, given, origin)
        return Ramp(ramp.first, ramp.last, ramp.shape, ramp.start, ramp.stop)
    if "warmup_epochs" in given:
        warmup = validated_model(_Warmup, given, origin)
        return Warmup(warmup.value, warmup.warmup_epochs)
    during = validated_model(_During, given, origin)
    return During(during.value, during.start, during.stop)
