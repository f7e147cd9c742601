"""What models say about held-out text, token by token, gathered in one pass without keeping any logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, LimbeckError
from limbeck.evaluate.predictions import Model, batches_of, evaluation_mode
from limbeck.signals import Batch
from limbeck.tasks.base import Task

_ROWS = 512
_TOP = 5
_COMPARED = ("forward", "reverse", "variation", "top5", "expected")
_WANTED = frozenset({"logits"})


@dataclass(frozen=True)
class Tokens:
    """What was measured at every position that counts, in the order of the data.

    Attributes:
        labels: ``[N]`` the true tokens.
        loss: ``[N]`` negative log-probability of the true token by role, nats.
        entropy: ``[N]`` entropy of the prediction by role, nats.
        top1: ``[N]`` the most likely token by role.
        confidence: ``[N]`` its probability by role.
        compared: ``[N]`` how student and teacher compare: ``forward`` KL(teacher ‖ student) and ``reverse`` in nats,
            ``variation`` half the L1 distance, ``top5`` the part of the five likeliest tokens that both have,
            ``expected`` how often tokens drawn from both would be equal. Empty without a teacher that has the same
            tokens.
        rows: ``[N]`` id of the row that each token is in.
    """

    labels: Tensor
    loss: Mapping[str, Tensor]
    entropy: Mapping[str, Tensor]
    top1: Mapping[str, Tensor]
    confidence: Mapping[str, Tensor]
    compared: Mapping[str, Tensor]
    rows: Tensor


def measure_tokens(
    models: Mapping[str, Model], loader: Any, task: Task, *, device: torch.device | str = "cpu"
) -> Tokens:
    """Runs every model once over the data, in eval mode and without gradients.

    Args:
        models: a live model or a provider by role; ``teacher`` is compared with ``student`` where both are there.
        loader: batches of text, or an object whose ``epoch(0)`` gives them.
        task: how a model is run.
        device: where the models are.

    Raises:
        DataError: there is no token to predict, or a model gives no logits.
        LimbeckError: a model gives NaN scores.
    """
    parts: dict[str, list[Tensor]] = {}
    with evaluation_mode(*models.values()):
        for batch in batches_of(loader):
            batch = batch.to(device)
            task.check(batch, None)
            places = batch["mask"].nonzero(as_tuple=True)
            logits = {role: _at(role, model, batch, task, places) for role, model in models.items()}
            _gather(parts, logits, batch["labels"][places])
            parts.setdefault("rows", []).append(batch["index"][places[0]].cpu())
    if not parts or not sum(len(p) for p in parts["rows"]):
        raise DataError("the held-out text has no token to predict; there is nothing to evaluate on")
    found = {name: torch.cat(pieces) for name, pieces in parts.items()}
    by_role = {
        what: {role: found[f"{what}/{role}"] for role in models} for what in ("loss", "entropy", "top1", "confidence")
    }
    compared = {name: found[name] for name in _COMPARED if name in found}
    return Tokens(found["labels"], **by_role, compared=compared, rows=found["rows"])


def _at(role: str, model: Model, batch: Batch, task: Task, places: tuple[Tensor, ...]) -> Tensor:
    """Returns a model's ``[n, V]`` logits at the positions that count."""
    inputs = batch.inputs_for(role)
    signals = task.run(model, inputs, _WANTED) if isinstance(model, nn.Module) else model(batch)
    if signals.logits is not None:
        logits = signals.logits[places]
    elif signals.hidden is not None:
        logits = signals.hidden.head(signals.hidden.states[places])
    else:
        raise DataError(f"role '{role}' gives no logits for the held-out text, so its predictions cannot be judged")
    if bool(logits.isnan().any()):
        bad = batch["index"][places[0][logits.isnan().any(-1)]].unique()[:5].tolist()
        raise LimbeckError(f"role '{role}' gives NaN scores for rows {bad}; its weights have diverged")
    return logits


def _gather(parts: dict[str, list[Tensor]], logits: Mapping[str, Tensor], labels: Tensor) -> None:
    """Adds what is measured at ``[n]`` positions, a few hundred at a time: whole distributions are large."""
    for start in range(0, len(labels), _ROWS):
        chosen = slice(start, start + _ROWS)
        logs = {role: scores[chosen].float().log_softmax(-1) for role, scores in logits.items()}
        target = labels[chosen]
        parts.setdefault("labels", []).append(target.cpu())
        for role, log_q in logs.items():
            best = log_q.max(-1)
            numbers = {
                "loss": -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1),
                "entropy": -_expected(log_q, log_q),
                "top1": best.indices,
                "confidence": best.values.exp(),
            }
            for what, values in numbers.items():
                parts.setdefault(f"{what}/{role}", []).append(values.cpu())
        if "teacher" in logs and "student" in logs and logs["teacher"].shape == logs["student"].shape:
            for what, values in _compared(logs["teacher"], logs["student"]).items():
                parts.setdefault(what, []).append(values.cpu())


def _compared(p: Tensor, q: Tensor) -> dict[str, Tensor]:
    """Returns how two predictions ``[n, V]``, as log-probabilities, compare at each place."""
    chances = p.exp(), q.exp()
    k = min(_TOP, p.shape[-1])
    likeliest, others = p.topk(k).indices, q.topk(k).indices
    return {
        "forward": (_expected(p, p) - _expected(p, q)).clamp(min=0),
        "reverse": (_expected(q, q) - _expected(q, p)).clamp(min=0),
        "variation": (chances[0] - chances[1]).abs().sum(-1) / 2,
        "top5": (likeliest.unsqueeze(-1) == others.unsqueeze(-2)).any(-1).float().mean(-1),
        "expected": (chances[0] * chances[1]).sum(-1),
    }


def _expected(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns ``sum p log q``, with 0 where ``p`` is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * log_q, torch.zeros_like(p)).sum(-1)


def perplexity(loss: float) -> float:
    """Returns ``exp(loss)``, infinite where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf
