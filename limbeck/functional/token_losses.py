"""Losses of single positions: the one core behind dense, chunked, truncated and sampled targets.

A :class:`TokenLoss` says what a row of logits costs, and how that changes with the logits. :func:`token_losses` takes
logits that are at hand, :func:`limbeck.functional.loss_head.projected_token_losses` hidden states and a head; both cut
rows into chunks, leave out masked rows, and work out gradients while the logits of a chunk are there.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import Divergence
from limbeck.functional.log_divergences import times
from limbeck.functional.reduction import widened

Targets = tuple[Tensor, ...]
TargetLogits = Callable[[Tensor | slice], Tensor]
"""Gives the logits ``[n, V]`` of rows of positions, so that a chunk of them can be made when it is needed."""


class Scores:
    """Logits ``[n, V]`` and their log-probabilities, computed once for each temperature.

    Attributes:
        logits: the logits, float32 or better.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._log_probabilities: dict[float, Tensor] = {}

    def log_probabilities(self, temperature: float = 1.0) -> Tensor:
        """Returns ``log softmax(logits / temperature)``, ``[n, V]``."""
        if temperature not in self._log_probabilities:
            tempered = self.logits if temperature == 1.0 else self.logits / temperature
            self._log_probabilities[temperature] = torch.log_softmax(tempered, dim=-1)
        return self._log_probabilities[temperature]


class Rule(ABC):
    """How a row of logits and a row of targets give a number. Has no tensors of its own and is hashable.

    Attributes:
        closed_form: whether :meth:`gradient` is plain tensor arithmetic, which compiles.
    """

    closed_form = False

    @abstractmethod
    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` losses, differentiable by the logits."""

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``[n]`` losses and their ``[n, V]`` derivatives by the logits; by autograd unless overridden."""
        with torch.enable_grad():
            logits = scores.logits.detach().requires_grad_()
            values = self.values(Scores(logits), *targets)
            (found,) = torch.autograd.grad(values.sum(), logits, allow_unused=True)
        return values.detach(), torch.zeros_like(logits) if found is None else found


class TokenLoss(ABC):
    """A rule with its targets: a loss for every position of ``[...]``.

    Attributes:
        rule: what a row costs.
    """

    rule: Any

    @abstractmethod
    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns the targets of some rows, counted over all leading dimensions."""

    @property
    @abstractmethod
    def leading(self) -> torch.Size:
        """Shape of the positions."""


def rows_of(tensor: Tensor, rows: Tensor | slice, trailing: int = 1) -> Tensor:
    """Returns rows of ``tensor``, whose last ``trailing`` dimensions belong to a position."""
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - trailing :])[rows]


@dataclass(frozen=True)
class LabelRule(Rule):
    """Negative log-probability of a class.

    Attributes:
        temperature: divides the logits.
    """

    temperature: float = 1.0
    closed_form = True

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` negative log-probabilities of labels ``[n]``."""
        return -scores.log_probabilities(self.temperature).gather(-1, targets[0].unsqueeze(-1)).squeeze(-1)

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses and probabilities minus the one-hot label."""
        chosen = targets[0].unsqueeze(-1)
        log_q = scores.log_probabilities(self.temperature)
        slope = log_q.exp().scatter_add(-1, chosen, -torch.ones_like(chosen, dtype=log_q.dtype))
        return -log_q.gather(-1, chosen).squeeze(-1), slope / self.temperature


_LABELS = LabelRule()


@dataclass(frozen=True)
class LabelLoss(TokenLoss):
    """Cross-entropy with given tokens.

    Attributes:
        labels: ``[...]`` int64 tokens; masked positions may hold anything.
        rule: at which temperature.
    """

    labels: Tensor
    rule: LabelRule = _LABELS

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns the labels of rows; those that stand for no token become 0, for they are masked."""
        return (self.labels.reshape(-1)[rows].clamp(min=0),)

    @property
    def leading(self) -> torch.Size:
        """Shape of the labels."""
        return self.labels.shape


@dataclass(frozen=True)
class ArgmaxLoss(TokenLoss):
    """Cross-entropy with the teacher's most likely token.

    Attributes:
        logits_of: gives the teacher's logits ``[n, V]`` of rows.
        shape: shape of the positions.
    """

    logits_of: TargetLogits
    shape: torch.Size
    rule = _LABELS

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns the likeliest tokens of rows."""
        with torch.no_grad():
            return (self.logits_of(rows).argmax(-1),)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.shape


@dataclass(frozen=True)
class EntropyRule(Rule):
    """Entropy of the distribution itself, which needs no target.

    Attributes:
        temperature: divides the logits.
    """

    temperature: float = 1.0
    closed_form = True

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` entropies in nats."""
        log_q = scores.log_probabilities(self.temperature)
        return -times(log_q.exp(), log_q).sum(-1)

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns entropies and ``-q (log q + H)``."""
        log_q = scores.log_probabilities(self.temperature)
        products = times(log_q.exp(), log_q)
        values = -products.sum(-1)
        return values, -(products + log_q.exp() * values.unsqueeze(-1)) / self.temperature


_ENTROPY = EntropyRule()


@dataclass(frozen=True)
class EntropyLoss(TokenLoss):
    """How unsure a model is at each position.

    Attributes:
        shape: shape of the positions.
        rule: at which temperature.
    """

    shape: torch.Size
    rule: EntropyRule = _ENTROPY

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns nothing: an entropy has no target."""
        return ()

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.shape


@dataclass(frozen=True)
class DivergenceRule(Rule):
    """A divergence between tempered distributions over the whole vocabulary.

    Attributes:
        divergence: the divergence.
        temperature: divides both logits.
        scale: what the value is multiplied by.
    """

    divergence: Divergence
    temperature: float = 1.0
    scale: float = 1.0

    @property
    def closed_form(self) -> bool:  # type: ignore[override]
        """Whether the divergence states its slope."""
        return self.divergence.slope is not None

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns the divergence from the target's logits ``[n, V]``."""
        log_p = Scores(targets[0]).log_probabilities(self.temperature)
        return self.scale * self.divergence(log_p, scores.log_probabilities(self.temperature))

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns values and derivatives, from the divergence's slope where it has one."""
        if self.divergence.slope is None:
            return super().gradient(scores, *targets)
        log_p = Scores(targets[0]).log_probabilities(self.temperature)
        log_q = scores.log_probabilities(self.temperature)
        slope = self.divergence.slope(log_p, log_q)
        derivative = slope - log_q.exp() * slope.sum(-1, keepdim=True)
        return self.scale * self.divergence(log_p, log_q), derivative * (self.scale / self.temperature)


@dataclass(frozen=True)
class DivergenceLoss(TokenLoss):
    """A divergence from a teacher's whole distribution.

    Attributes:
        rule: which divergence, and at which temperature.
        logits_of: gives the teacher's logits ``[n, V]`` of rows, so that a chunk of them can be made when needed.
        shape: shape of the positions.
    """

    rule: DivergenceRule
    logits_of: TargetLogits
    shape: torch.Size

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns the teacher's logits of rows, float32 or better, without a graph."""
        with torch.no_grad():
            return (widened(self.logits_of(rows)),)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.shape


def divergence_loss(
    divergence: Divergence, teacher_logits: Tensor, *, temperature: float = 1.0, scale_by_t2: bool = False
) -> DivergenceLoss:
    """Returns the loss of positions against teacher logits ``[..., V]``, a constant.

    Args:
        divergence: which, see :func:`limbeck.functional.divergence_registry.divergence`.
        teacher_logits: ``[..., V]`` over the true vocabulary.
        temperature: divides both logits.
        scale_by_t2: whether to multiply by the squared temperature; language-model code mostly does not.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but should be positive")
    rule = DivergenceRule(divergence, float(temperature), float(temperature) ** 2 if scale_by_t2 else 1.0)
    constant = teacher_logits.detach()
    return DivergenceLoss(rule, functools.partial(rows_of, constant), constant.shape[:-1])


def combined_gradient(
    rules: Sequence[Rule], silent: Sequence[bool], logits: Tensor, targets: Sequence[Targets], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns ``[terms, n]`` values and the ``[n, V]`` derivative of their sum with ``weights [terms, n]``.

    Terms that are ``silent`` weigh nothing, so that their derivative is not worked out.
    """
    scores = Scores(logits)
    values: list[Tensor] = []
    total = None
    for rule, quiet, target, weight in zip(rules, silent, targets, weights):
        if quiet:
            values.append(rule.values(scores, *target))
            continue
        value, derivative = rule.gradient(scores, *target)
        values.append(value)
        part = derivative * weight.unsqueeze(-1)
        total = part if total is None else total + part
    return torch.stack(values), torch.zeros_like(logits) if total is None else total


@functools.lru_cache(maxsize=64)
def compiled_gradient(rules: tuple[Rule, ...], silent: tuple[bool, ...]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns :func:`combined_gradient` compiled for these rules; once for all numbers of rows and classes."""
    return torch.compile(functools.partial(combined_gradient, rules, silent), dynamic=True)


def can_compile(rules: Sequence[Rule]) -> bool:
    """Whether all rules are plain arithmetic and this machine has what compiling takes."""
    return all(rule.closed_form for rule in rules) and _has_compiler()


@functools.cache
def _has_compiler() -> bool:
    """Whether a small function compiles here: a compiler for the processor, or Triton where there is a GPU."""
    try:
        torch.compile(lambda x: x.exp() + 1, dynamic=True)(torch.zeros(2, device="cuda" if _gpu() else "cpu"))
    except Exception:  # whatever a toolchain that is absent or broken raises
        return False
    return True


def _gpu() -> bool:
    return torch.cuda.is_available()


def check_positions(losses: Mapping[str, TokenLoss], leading: torch.Size, mask: Tensor | None) -> None:
    """Refuses losses and masks whose positions are not those of the student.

    Raises:
        ValueError: says which, and both shapes.
    """
    if not losses:
        raise ValueError("there is no loss to compute")
    for name, loss in losses.items():
        if loss.leading != leading:
            raise ValueError(f"'{name}' has targets for positions {tuple(loss.leading)}, the student {tuple(leading)}")
    if mask is not None and mask.shape != leading:
        raise ValueError(f"the mask is {tuple(mask.shape)} but the positions are {tuple(leading)}")
