"""Several methods at once: the terms of all of them, from one run of each model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import NeedsError
from limbeck.methods.base import Method, Needs, Observed, Observers, Passes, Setup
from limbeck.schedules import Progress, Scaled
from limbeck.signals import Batch, Signals, Terms, as_term

_HOLDOUT: tuple[Literal["batches", "passes"], ...] = ("batches", "passes")
"""How members may need held-out data, the most first."""


class Combined(Method):
    """Sums the losses of several methods on the same student.

    Each model runs once a batch, with the taps and views that any member needs. A term that two members compute alike
    from the same signals, as most do the cross-entropy ``ce``, counts once, with the weight of the first of them.
    Another term whose name is taken is called ``member.term``.

    Args:
        members: methods by label, in order. Labels name terms and must not hold a dot.
        factors: by label, what all the weights of a member are multiplied by; 1 when absent.
    """

    def __init__(self, members: Mapping[str, Method], factors: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleDict(dict(members))
        self._factors = dict(factors or {})
        self._names: dict[str, dict[str, str]] = {}
        self._batch: Batch | None = None
        self._signals: Mapping[str, Signals] = {}
        every = list(members.values())
        self._roles = tuple(dict.fromkeys(role for m in every for role in m.roles()))
        self.needs = _union([m.needs for m in every])
        self.batch_coupled = any(m.batch_coupled for m in every)
        self.one_process = any(m.one_process for m in every)
        self.order_dependent = any(m.order_dependent for m in every)
        # A class says these of all its objects; here they depend on the members.
        for name, value in {
            "learners": tuple(dict.fromkeys(role for m in every for role in m.learners)),
            "batch_statistics": tuple(dict.fromkeys(role for m in every for role in m.batch_statistics)),
            "same_channels": any(m.same_channels for m in every),
            "extends_student": any(m.extends_student for m in every),
            "semi_supervised": all(m.semi_supervised for m in every),
            "refreshes": any(m.refreshes for m in every),
            "second_order": any(m.second_order for m in every),
            "optimizers": {who: settings for m in reversed(every) for who, settings in m.optimizers.items()},
        }.items():
            setattr(self, name, value)
        self._check()

    @property
    def called(self) -> str:
        """Its members, as messages call them."""
        return " + ".join(self.members)

    def _check(self) -> None:
        """Refuses members that contradict each other.

        Raises:
            NeedsError: two members add to the student, one trains a role that is frozen for another, or they want a
                teacher with different normalisation.
        """
        extending = [label for label, m in self._each() if m.extends_student]
        if len(extending) > 1:
            raise NeedsError(
                f"'{extending[0]}' and '{extending[1]}' both deploy the student with parts of their own, of which only "
                "one can be its head; keep one of them"
            )
        for label, member in self._each():
            for other, beside in self._each():
                shared = [role for role in member.roles() if role in beside.roles()]
                for role in shared:
                    if role in member.learners and role not in beside.learners:
                        raise NeedsError(
                            f"'{label}' trains the role '{role}', which is frozen for '{other}'; use one of them, or "
                            "two stages"
                        )
                    if role in member.batch_statistics and role not in beside.batch_statistics:
                        raise NeedsError(
                            f"'{label}' reads the role '{role}' under the statistics of each batch, '{other}' under "
                            "those that it was trained to; one run of the model cannot serve both: use one of them, "
                            "or two stages"
                        )

    def _each(self) -> Iterator[tuple[str, Method]]:
        for label, member in self.members.items():
            assert isinstance(member, Method)
            yield label, member

    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        """Roles of all members, in order of appearance."""
        return self._roles

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Runs every role once for all members; one that runs models in its own way does so besides."""
        said: dict[str, Signals] = {}
        if any(type(m).observe is Method.observe for _, m in self._each()):
            said.update(super().observe(batch, observers))
        for label, member in self._each():
            if type(member).observe is not Method.observe:
                for role, signals in member.observe(batch, observers).items():
                    said[f"{label}/{role}"] = signals
                    said.setdefault(role, signals)
        return said

    def _signals_of(self, label: str, member: Method, signals: Mapping[str, Signals]) -> dict[str, Signals]:
        return {role: signals.get(f"{label}/{role}", signals[role]) for role in member.roles()}

    def forward(self, batch: Batch, **signals: Signals) -> Terms:
        """Returns the terms of all members."""
        terms: Terms = {}
        for label, member in self._each():
            names = self._names[label]
            for name, value in member(batch, **self._signals_of(label, member, signals)).items():
                terms.setdefault(names[name], value)
        return terms

    def build(self, setup: Setup) -> None:
        """Builds every member from the part of the setup that concerns it."""
        for label, member in self._each():
            member.build(
                replace(
                    setup,
                    signals=self._signals_of(label, member, setup.signals),
                    models={role: m for role, m in setup.models.items() if role in member.roles()},
                    taps={role: t for role, t in setup.taps.items() if role in member.roles()},
                )
            )
        self._batch, self._signals = setup.batch, setup.signals

    def prepare(self, observe_all: Callable[[], Iterator[tuple[Batch, dict[str, Signals]]]]) -> None:
        """Lets members gather their statistics; then names the terms."""
        for label, member in self._each():
            member.prepare(functools.partial(self._pass_of, label, member, observe_all))
        self._name_terms()

    def _pass_of(self, label: str, member: Method, observed: Callable[[], Observed]) -> Observed:
        """Yields what a pass over data gives, with the signals that concern one member."""
        for batch, signals in observed():
            known = {role: signals[role] for role in signals if role in member.roles()}
            yield batch, known | {r: signals[f"{label}/{r}"] for r in member.roles() if f"{label}/{r}" in signals}

    def refresh(self, progress: Progress, passes: Passes) -> None:
        """Lets members recompute what depends on the models as they are now."""
        for label, member in self._each():
            if member.refreshes:
                training, holdout = (
                    functools.partial(self._pass_of, label, member, source)
                    for source in (passes.training, passes.holdout)
                )
                member.refresh(progress, Passes(training, holdout))

    def _name_terms(self) -> None:
        """Gives each term its name and its weight, by comparing the values of those that are called alike."""
        assert self._batch is not None
        seen: dict[str, Tensor] = {}
        for label, member in self._each():
            signals = self._signals_of(label, member, self._signals)
            with torch.no_grad():
                values = {n: as_term(v).values for n, v in copy.deepcopy(member)(self._batch, **signals).items()}
            self._names[label] = names = {name: _name(label, name, value, seen) for name, value in values.items()}
            seen.update({names[name]: value for name, value in values.items()})
            for name, weight in member.weights.items():
                # What is misspelt keeps its name, and the check against the terms finds it.
                self.weights.setdefault(names.get(name, name), Scaled(weight, self._factors.get(label, 1.0)).simplest())
        self._batch, self._signals = None, {}

    def after_step(self, progress: Progress) -> None:
        """Tells every member."""
        for _, member in self._each():
            member.after_step(progress)

    def players(self, learners: Mapping[str, nn.Module]) -> dict[str, tuple[list[nn.Parameter], frozenset[str] | None]]:
        """Returns the players of all members; those of one name are one player with the terms of both."""
        parameters: dict[str, dict[int, nn.Parameter]] = {}
        terms: dict[str, set[str]] = {}
        for label, member in self._each():
            names = self._names[label]
            for who, (own, only) in member.players({r: learners[r] for r in member.learners}).items():
                parameters.setdefault(who, {}).update({id(p): p for p in own})
                terms.setdefault(who, set()).update(names[n] for n in (names if only is None else only))
        alone = len(parameters) == 1
        return {who: (list(own.values()), None if alone else frozenset(terms[who])) for who, own in parameters.items()}

    def yielding(self) -> frozenset[str]:
        """Returns the terms that give way for some member; they then do so to the terms of all members."""
        return frozenset(self._names[label].get(n, n) for label, member in self._each() for n in member.yielding())

    def finish(self, student: nn.Module) -> nn.Module:
        """Returns the deployable student after every member's turn."""
        for _, member in self._each():
            student = member.finish(student)
        return student


def _name(label: str, name: str, value: Tensor, seen: Mapping[str, Tensor]) -> str:
    """Returns what a member's term is called: as an equal term before it, by its own name, or with the label."""
    called_alike = [other for other in seen if other.rpartition(".")[2] == name]
    equal = (o for o in called_alike if seen[o].shape == value.shape and torch.equal(seen[o], value))
    return next(equal, f"{label}.{name}" if called_alike else name)


def _union(needs: list[Needs]) -> Needs:
    roles = dict.fromkeys(role for need in needs for role in need.roles)
    return Needs(
        batch=frozenset().union(*(need.batch for need in needs)),
        holdout=next((way for way in _HOLDOUT if any(need.holdout == way for need in needs)), None),
        views=tuple(dict.fromkeys(view for need in needs for view in need.views)),
        **{role: frozenset().union(*(need.roles.get(role, frozenset()) for need in needs)) for role in roles},
    )
