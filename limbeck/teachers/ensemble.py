"""Several providers as one: their predictions averaged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import NeedsError, RecipeError
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals
from limbeck.teachers.provider import Provider


class Ensemble:
    """Averages the predictions of several providers, live ones and caches alike.

    With ``average="probabilities"`` the logits are the log of the mixture, ``log(sum_m w_m softmax(logits_m))``, so
    their softmax is the mean probability; with ``average="logits"`` they are the mean of the logits. Features,
    embeddings and attentions cannot be averaged between architectures: they pass through where exactly one member gives
    them.

    Args:
        members: the providers.
        weights: one non-negative weight a member, normalised to sum to one; equal when None.
        average: what is averaged.

    Raises:
        RecipeError: no member, a weight count that differs, or weights that cannot be normalised.

    Example:
        >>> one = lambda batch: Signals(logits=torch.tensor([[0.9, 0.1]]).log())
        >>> two = lambda batch: Signals(logits=torch.tensor([[0.5, 0.5]]).log())
        >>> Ensemble([one, two])(Batch()).logits.softmax(-1)
        tensor([[0.7000, 0.3000]])
    """

    def __init__(
        self,
        members: Sequence[Provider],
        weights: Sequence[float] | None = None,
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        if not members:
            raise RecipeError("an ensemble needs at least one member")
        if average not in ("probabilities", "logits"):
            raise RecipeError(f"an ensemble averages 'probabilities' or 'logits', but not {average!r}")
        self.members = tuple(members)
        self.weights = _normalised(weights, len(members))
        self.average = average

    def __call__(self, batch: Batch) -> Signals:
        """Returns the averaged predictions, and what exactly one member gives besides.

        Raises:
            NeedsError: a member gives no logits, the class counts differ, or two members give features.
        """
        return self._combine([member(batch) for member in self.members])

    def _combine(self, given: Sequence[Signals]) -> Signals:
        signals = [with_logits(s) for s in given]
        features = _only_giver([s.features or None for s in signals], "features")
        views = set.intersection(*(set(s.views) for s in signals))
        return Signals(
            logits=self._mean([s.logits for s in signals]),
            features=features or {},
            embedding=_only_giver([s.embedding for s in signals], "an embedding"),
            attentions=_only_giver([s.attentions for s in signals], "attentions"),
            views={view: self._combine([s.views[view] for s in signals]) for view in sorted(views)},
        )

    def _mean(self, logits: Sequence[Tensor | None]) -> Tensor:
        given = [x for x in logits if x is not None]
        if len(given) != len(logits):
            silent = [x is None for x in logits].index(True)
            raise NeedsError(
                f"member {silent} of the ensemble gives no logits to average; a server and a cache of the likeliest or "
                "of drawn tokens have none, a cache with the codec hidden, fp16 or fp32 has"
            )
        counts = [x.shape[-1] for x in given]
        if len(set(counts)) > 1:
            raise NeedsError(f"the members of an ensemble need the same classes, but they have {counts} of them")
        # Half-precision members would lose the small probabilities of the mixture.
        stacked = torch.stack([x if x.dtype == torch.float64 else x.float() for x in given])
        weights = stacked.new_tensor(self.weights).view(-1, *[1] * (stacked.dim() - 1))
        if self.average == "logits":
            return (weights * stacked).sum(0)
        return torch.logsumexp(stacked.log_softmax(-1) + weights.log(), dim=0)

    def start(self) -> None:
        """Starts every member."""
        for member in self.members:
            member.start()

    def finish(self) -> None:
        """Finishes every member, and raises the first error that one of them raised."""
        errors = []
        for member in self.members:
            try:
                member.finish()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def after_step(self, progress: Progress) -> None:
        """Passes the end of an optimizer step on to the members that move."""
        for member in self.members:
            if hasattr(member, "after_step"):
                member.after_step(progress)

    def fingerprint(self) -> str:
        """Returns a hash of the members' fingerprints, their weights and what is averaged.

        Raises:
            NeedsError: a member has no fingerprint, so the ensemble cannot be known again.
        """
        parts = []
        for number, (weight, member) in enumerate(zip(self.weights, self.members)):
            if not hasattr(member, "fingerprint"):
                who = f"member {number} of the ensemble ({type(member).__name__})"
                raise NeedsError(f"{who} has no fingerprint, so what it says cannot be cached")
            parts.append(f"{weight!r}*{member.fingerprint()}")
        return hashlib.blake2b(f"{self.average}({'+'.join(parts)})".encode(), digest_size=16).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the members that move, by position."""
        return {str(n): member.state_dict() for n, member in enumerate(self.members) if hasattr(member, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the members that move."""
        for number, member_state in state.items():
            self.members[int(number)].load_state_dict(member_state)  # type: ignore[attr-defined]


def models_of(provider: Any) -> list[nn.Module]:
    """Returns the models that a provider runs here, each once: its own, or those of its members and of theirs.

    Example:
        >>> models_of(Ensemble([lambda batch: Signals()]))
        []
    """
    if not isinstance(provider, Ensemble):
        model = getattr(provider, "model", None)
        return [model] if isinstance(model, nn.Module) else []
    return list(dict.fromkeys(model for member in provider.members for model in models_of(member)))


def is_live(provider: Any) -> bool:
    """Whether a provider runs models alone, so that it can be asked about any data, unlike a cache."""
    if isinstance(provider, Ensemble):
        return all(is_live(member) for member in provider.members)
    return bool(models_of(provider))


def with_logits(signals: Signals) -> Signals:
    """Returns a record that holds logits where there were hidden states with their output layer."""
    if signals.logits is not None or signals.hidden is None:
        return signals
    return replace(signals, logits=signals.hidden.logits(), hidden=None)


def _normalised(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    values = [1.0] * members if weights is None else [float(w) for w in weights]
    if len(values) != members:
        raise RecipeError(f"an ensemble of {members} members needs {members} weights, but got {len(values)}")
    total = math.fsum(values)
    if any(not math.isfinite(w) or w < 0 for w in values) or total <= 0:
        raise RecipeError(f"the weights of an ensemble must be non-negative with a positive sum, but they are {values}")
    return tuple(w / total for w in values)


def _only_giver(values: Sequence[Any], what: str) -> Any:
    """Returns the one value that is there, or None."""
    given = [number for number, value in enumerate(values) if value is not None]
    if len(given) > 1:
        raise NeedsError(
            f"members {given} of the ensemble all give {what}, which cannot be averaged; tap one member only, or give "
            "them roles of their own"
        )
    return values[given[0]] if given else None
