"""Every hyperparameter of every method changes the result, is documented, and is refused outside its range."""

from __future__ import annotations

import itertools
import math
import operator
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from limbeck.errors import LimbeckError, RecipeError
from limbeck.methods.base import build_method, methods
from limbeck.methods.sequence.base import DivergenceChoice
from limbeck.methods.sequence.token_choice import TokenChoice
from limbeck.signals import as_term
from methods.workbench import annotations, bench, choices, weighted_totals

EVERY = [(name, key) for name in methods for key in methods[name].part.hyperparameters()]
TOGETHER: dict[str, dict[str, Any]] = {
    "dhkd": {"temperature": 0.05},
    "distillm2": {"adaptive_skew": True, "anchor_steps": 1, "skew": 0.9},
    "kdrl": {"anneal": 1e-3},
    "opsd": {"clip": 1e-3, "beta": 0.0},
    "taid": {"step_size": 0.9},
    "unified_opd": {"access": "scores"},
    "word_kd": {"temperature": 2.0},
}
"""Values of other hyperparameters without which one of a method does nothing."""
every_hyperparameter = pytest.mark.parametrize(("name", "key"), EVERY, ids=[f"{n}.{k}" for n, k in EVERY])


def _inner(annotation: Any) -> Any:
    """The annotation without ``None``."""
    if annotation == TokenChoice | None:
        return TokenChoice
    if get_origin(annotation) in (Union, types.UnionType) and annotation != DivergenceChoice:
        (annotation,) = (option for option in get_args(annotation) if option is not type(None))
    return annotation


def _number(annotation: Any) -> tuple[type, tuple[Any, ...]] | None:
    """Type and bounds of a number, or None for other types."""
    base, bounds = annotation, ()
    if get_origin(annotation) is Annotated:
        base, *bounds = get_args(annotation)
    return (base, tuple(bounds)) if base in (int, float) else None


def _allowed(value: float, bounds: tuple[Any, ...]) -> bool:
    compare = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}
    return all(compare[type(bound)](value, getattr(bound, type(bound).__name__.lower())) for bound in bounds)


def _other_values(name: str, key: str) -> Iterator[Any]:
    """Allowed values that are not the default."""
    annotation, default = annotations(name)[key], methods[name].part.hyperparameters()[key].default
    inner = _inner(annotation)
    if choices(inner):
        yield from (choice for choice in choices(inner) if choice != default)
    elif key == "tokens" and inner == TokenChoice:
        yield from ("surer_teacher", {"name": "opening", "fraction": 0.5})
    elif inner == DivergenceChoice:
        yield from ("reverse_kl", {"name": "jsd", "beta": 0.3})
    elif get_origin(inner) is tuple:
        # Fewer entries, other entries; one that was left out stands for all there could be.
        yield from ((1,), (2,)) if default is None else (default[:-1], tuple(1.5 * entry for entry in default))
    else:
        number = _number(inner)
        assert number is not None, f"{name}.{key}: {annotation} is no kind of hyperparameter that is known here"
        kind, bounds = number
        start = default if default is not None else 1
        tries = [start + 1, start - 1, start + 2, start * 1.7, start * 0.6, 0.3, 3.0, 30.0, 1000.0, 1]
        tries = [int(v) for v in tries if v == int(v)] if kind is int else [float(v) for v in tries]
        yield from (v for v in tries if v != default and _allowed(v, bounds))


def _contexts(name: str, key: str) -> Iterator[dict[str, Any]]:
    """The defaults, and each single choice of another hyperparameter: some matter only together with one."""
    yield {}
    hints = annotations(name)
    for other, parameter in methods[name].part.hyperparameters().items():
        if other != key:
            yield from ({other: choice} for choice in choices(hints[other]) if choice != parameter.default)
    yield {other: value for other, value in TOGETHER.get(name, {}).items() if other != key}


def _result(name: str, config: dict[str, Any], steps: int = 2) -> list[float]:
    """Losses after some steps, at every moment of a run, each term, the number of parameters of the method and of terms
    whose gradient gives way, and what an extended student says.
    """
    built = bench(name, config)
    built.train(steps)
    terms = built.terms()
    each = [float(as_term(terms[n]).mean().detach()) for n in sorted(terms)]
    size = sum(p.numel() for p in built.method.parameters())
    said: list[float] = []
    if built.method.extends_student:
        student = built.method.finish(built.learners["student"]).eval()
        said = student(built.batch()["inputs"]).detach().flatten().tolist()
    return [*weighted_totals(built, terms), *each, float(size), float(len(built.method.yielding())), *said]


@every_hyperparameter
def test_changes_the_result(name: str, key: str) -> None:
    """Authors' code has hyperparameters that a hard-coded constant overrules."""
    default = methods[name].part.hyperparameters()[key].default
    for context in _contexts(name, key):
        # Two act late: through the gradient of few of the first sequences, and at the end of a run.
        steps = {"detach_skew": 4, "average_from": 24}.get(key, 2)
        try:
            expected = _result(name, {**context, key: default}, steps)
        except RecipeError:
            continue  # A choice that another one excludes.
        for value in itertools.islice(_other_values(name, key), 10):
            try:
                changed = _result(name, {**context, key: value}, steps)
            except LimbeckError:
                continue
            if len(changed) != len(expected) or not torch.allclose(
                torch.tensor(changed), torch.tensor(expected), rtol=1e-9, atol=0
            ):
                return
    pytest.fail(f"{key} changes nothing")


@every_hyperparameter
def test_a_wrong_type_is_refused_by_name(name: str, key: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s)method '{name}'.*{key}"):
        build_method(name, **{key: object()})


@every_hyperparameter
def test_a_number_has_a_range_and_is_refused_outside_it(name: str, key: str) -> None:
    inner = _inner(annotations(name)[key])
    if get_origin(inner) is tuple:
        inner = get_args(inner)[0]
        wrap: Any = lambda value: (value,)  # noqa: E731
    else:
        wrap = lambda value: value  # noqa: E731
    number = _number(inner)
    if number is None:
        assert choices(inner) or inner == DivergenceChoice, f"{name}.{key} is neither a number nor a choice"
        return
    kind, bounds = number
    assert bounds, f"{name}.{key} accepts any {kind.__name__}; annotate it with a range from limbeck.hyperparameters"
    outside = [_beyond(bound, kind) for bound in bounds]
    if kind is float:
        outside += [math.nan, math.inf]
    for value in outside:
        with pytest.raises(RecipeError, match=f"(?s)method '{name}'.*{key}"):
            build_method(name, **{key: wrap(value)})


def _beyond(bound: Any, kind: type) -> Any:
    """A value just outside a bound."""
    step = 1 if kind is int else 1e-6
    limit = getattr(bound, type(bound).__name__.lower())
    return limit + {Ge: -step, Gt: 0, Le: step, Lt: 0}[type(bound)]


@pytest.mark.parametrize("name", list(methods))
def test_hyperparameters_are_keywords_with_defaults(name: str) -> None:
    for key, parameter in methods[name].part.hyperparameters().items():
        assert parameter.kind is parameter.KEYWORD_ONLY, key
        assert parameter.default is not parameter.empty, key


@pytest.mark.parametrize("name", list(methods))
def test_an_unknown_hyperparameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(RecipeError, match="temprature"):
        build_method(name, temprature=1.0)


def test_every_method_declares_types() -> None:
    for name in methods:
        hints = annotations(name)
        assert set(hints) == set(methods[name].part.hyperparameters()), name
        assert typing.Any not in hints.values(), name
