"""Refuses before the first step, with the reason, what cannot work: taps, needs, shapes, labels, weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from limbeck.anatomy import TAP_GROUPS, anatomy_of
from limbeck.engine import distributed
from limbeck.engine.combine import check_weights
from limbeck.engine.settings import TrainSettings
from limbeck.errors import LimbeckError, NeedsError, RecipeError, suggest
from limbeck.methods.base import Method, Setup
from limbeck.modes import evaluation_mode
from limbeck.schedules import Weight
from limbeck.signals import Batch, Signals
from limbeck.taps import resolve
from limbeck.transforms.base import transforms


def check_settings(method: Method, settings: TrainSettings) -> None:
    """Refuses settings and processes in which a method would not compute what it says.

    Raises:
        RecipeError: names the setting.
    """
    name, processes = method.called, distributed.world_size()
    if settings.micro_batches > 1 and method.batch_coupled:
        raise RecipeError(
            f"the loss of {name} couples the samples of a batch, so micro-batches would change it; set "
            "train.micro_batches to 1"
        )
    if method.one_process and processes > 1:
        raise RecipeError(
            f"{name} with these hyperparameters runs in one process, but there are {processes}; start it without "
            "torchrun"
        )
    chosen = {"compile": settings.compile, "sharding": settings.sharding == "fsdp" and processes > 1}
    for setting in (setting for setting, on in chosen.items() if on and method.second_order):
        raise RecipeError(
            f"{name} differentiates through a step of the student, which compiled and sharded models do not allow; "
            f"remove train.{setting}"
        )


def tap_groups(
    role: str, model: nn.Module, needed: Sequence[str], given: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Sequence[str]]:
    """Returns the tap paths of the groups that a method needs from a role.

    Raises:
        NeedsError: neither the recipe nor the model says where a group is.
    """
    _check_given(role, model, needed, given or {})
    known: dict[str, Sequence[str]] = {**anatomy_of(model).groups(), **(given or {})}
    missing = [group for group in needed if not known.get(group)]
    if missing:
        modules = ", ".join(name for name, _ in list(model.named_children())[:12])
        raise NeedsError(
            f"the method needs the features '{missing[0]}' of role '{role}', but {type(model).__name__} does not say "
            f"where they are; name the modules in the recipe, `roles: {{{role}: {{taps: {{{missing[0]}: [...]}}}}}}`. "
            f"Its top modules: {modules}"
        )
    return {group: known[group] for group in needed}


def _check_given(role: str, model: nn.Module, needed: Sequence[str], given: Mapping[str, Sequence[str]]) -> None:
    """Refuses taps of a misspelt group or module, also where the method does not read them."""
    groups = {*needed, *TAP_GROUPS}
    for group, paths in given.items():
        if group not in groups:
            raise NeedsError(f"unknown tap group '{group}' of role '{role}'. {suggest(group, groups)}")
        for path in paths:
            resolve(model, path)


def dry_run(method: Method, batch: Batch, observers: Mapping[str, Callable[[Batch], Signals]]) -> dict[str, Signals]:
    """Runs every role once without gradients and in eval mode, so that nothing moves.

    Raises:
        NeedsError: a role cannot run on the data, or lacks a signal that the method needs; names the fix.
    """
    if method.batch_coupled and batch.size < 2:
        raise NeedsError(
            f"the loss of {method.called} compares the samples of a batch, but a batch has {batch.size}; "
            "set train.batch_size to 2 or more"
        )
    for view in method.needs.views:
        if view not in batch.get("views", {}):
            raise NeedsError(
                f"the method needs a further view '{view}' of each sample; of images name its augmentation in "
                f"`data: {{views: {{{view}: [...]}}}}`, of text give pairs of answers (`prompt`, `chosen`, `rejected`)"
            )
    for key in method.needs.batch:
        if key not in batch:
            raise NeedsError(
                f"the method needs '{key}' in the batch, but the data gives only {sorted(batch)}{_made_by(key)}"
            )
    if "labelled_mask" in batch and not method.semi_supervised:
        raise NeedsError(
            f"{method.called} learns nothing from samples without a label, but the data is labelled in part; "
            "use a method that does, such as dho, kd or sinkd, or `data: {unlabelled: drop}`"
        )
    _check_separate(method, observers)
    with evaluation_mode(*(getattr(observer, "model", None) for observer in observers.values())):
        signals = method.observe(batch, {role: _explained(role, o) for role, o in observers.items()})
    _check_needs(method, signals)
    _check_classes(method, signals)
    return {role: s.detach() for role, s in signals.items()}


_OPTIONS = dict.fromkeys(("reward", "advantage", "group", "group_best"), ", with its option `reward`")
"""What a transform must be told to make an entry of the batch."""


def _made_by(key: str) -> str:
    """Says which transform adds an entry of the batch, where one does."""
    makers = [entry.name for entry in transforms.entries() if key in entry.part.changes]
    if not makers or key in ("inputs", "labels", "mask"):
        return ""
    return f"; add a transform that makes it, `transforms: [{makers[0]}]`" + _OPTIONS.get(key, "")


def _check_separate(method: Method, observers: Mapping[str, Callable[[Batch], Signals]]) -> None:
    """Refuses a frozen model that shares parameters with one that trains: it could not stay as it is."""
    models = {role: m for role, o in observers.items() if isinstance(m := getattr(o, "model", None), nn.Module)}
    owners = {id(p): role for role, m in models.items() if role in method.learners for p in m.parameters()}
    for role, model in models.items():
        shared = next((owners[id(p)] for p in model.parameters() if id(p) in owners), role)
        if role not in method.learners and shared != role:
            raise NeedsError(
                f"the frozen role '{role}' and the trained role '{shared}' share parameters; give one of them a copy "
                "(copy.deepcopy), or follow the student with an EMA role"
            )


def _explained(role: str, observer: Callable[[Batch], Signals]) -> Callable[[Batch], Signals]:
    def observe(batch: Batch) -> Signals:
        try:
            return observer(batch)
        except LimbeckError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            inputs = batch.inputs_for(role)
            shape = tuple(inputs.shape[1:]) if hasattr(inputs, "shape") else type(inputs).__name__
            model = type(getattr(observer, "model", observer)).__name__
            raise NeedsError(
                f"role '{role}' ({model}) cannot run on samples of shape {shape}: {str(error).splitlines()[0]}"
            ) from error

    return observe


def _check_needs(method: Method, signals: Mapping[str, Signals]) -> None:
    for role, needed in method.needs.roles.items():
        missing = sorted(n.replace("|", " or ") for n in needed if signals[role].present().isdisjoint(n.split("|")))
        if missing:
            has = ", ".join(sorted(signals[role].present())) or "nothing"
            raise NeedsError(
                f"the method needs {', '.join(missing)} from role '{role}', which gives only {has}; "
                "use a live model for this role, or a cache that holds these signals"
            )
        unseen = [view for view in method.needs.views if view not in signals[role].views]
        if unseen:
            raise NeedsError(
                f"the method needs what role '{role}' says of the view '{unseen[0]}', which it does not give; "
                "use a live model for this role, or a cache that holds the view"
            )


def _check_classes(method: Method, signals: Mapping[str, Signals]) -> None:
    counts = {
        role: s.logits.shape[-1]
        for role, s in signals.items()
        if s.logits is not None and "logits" in method.needs.roles.get(role, ())
    }
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{role} {count}" for role, count in counts.items())
        raise NeedsError(
            f"the roles have different numbers of classes ({said}); give both models the same, in the same order"
        )


def fit(
    method: Method,
    setup: Setup,
    weights: Mapping[str, Weight],
    observe_all: Callable[[], Iterator[tuple[Batch, dict[str, Signals]]]],
) -> None:
    """Builds a method for the shapes of a dry run, sets its weights, and tries its loss once.

    Args:
        method: the method.
        setup: what it is built from, with the batch of the dry run.
        weights: weights of terms that take precedence over the method's own.
        observe_all: passes over the training data, for methods that gather statistics.

    Raises:
        NeedsError: the method cannot use these shapes.
        RecipeError: a weight names no term, or a term has no weight.
    """
    assert setup.batch is not None
    with _explained_by(method, setup.batch):
        method.build(setup)
        method.weights.update(weights)
        method.prepare(observe_all)
        _trial(method, setup.batch, dict(setup.signals))


@contextmanager
def _explained_by(method: Method, batch: Batch) -> Iterator[None]:
    """Turns what PyTorch says of shapes and values that do not fit into an error that names the method."""
    try:
        yield
    except LimbeckError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise NeedsError(
            f"{method.called} cannot work on this batch of {batch.size}: {str(error).splitlines()[0]}"
        ) from error


def _trial(method: Method, batch: Batch, signals: dict[str, Signals]) -> None:
    """Computes the loss once on a copy of the method and checks the terms' names against the weights."""
    with torch.no_grad():
        terms = copy.deepcopy(method)(batch, **signals)
    check_weights(method.weights, terms, method.called)
