"""loss = combine(terms, weights), normalised once over the whole batch however it is split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import NonFiniteLossError, RecipeError, suggest
from limbeck.schedules import Progress, Weight, weight_at
from limbeck.signals import Batch, Terms, as_term


def check_weights(weights: Mapping[str, Weight], terms: Mapping[str, object], owner: str) -> None:
    """Refuses a weight that names no term, and a term without weight.

    Raises:
        RecipeError: says which name and what the terms are called.
    """
    for name in weights:
        if name not in terms:
            raise RecipeError(f"{owner} has no term '{name}' to weigh. {suggest(name, terms)}")
    for name in terms:
        if name not in weights:
            raise RecipeError(f"the term '{name}' of {owner} has no weight; set `weights: {{{name}: 1.0}}`")


def term_means(terms: Terms) -> dict[str, Tensor]:
    """Returns each term's mean over the positions of this batch."""
    return {name: as_term(value).mean() for name, value in terms.items()}


@dataclass(frozen=True)
class WholeBatch:
    """What sums over a part of a batch are divided by.

    Attributes:
        samples: number of samples over all micro-batches and processes.
        positions: number of positions that each mask of the batch keeps, likewise, by the mask's name.
        rows: number of samples of which each mask keeps a position.
    """

    samples: float
    positions: Mapping[str, float]
    rows: Mapping[str, float]


def _masks(batch: Batch) -> dict[str, Tensor]:
    """Masks of a batch: ``mask`` itself and entries whose name ends in ``_mask``."""
    named = {k: v for k, v in batch.items() if k == "mask" or k.endswith("_mask")}
    return {name: named[name] for name in sorted(named) if isinstance(named[name], Tensor)}


def whole_batch(batch: Batch, totals: Callable[[list[float]], list[float]]) -> WholeBatch:
    """Returns the size of the batch of which ``batch`` is a process's part; ``totals`` adds counts over processes."""
    flags = {name: mask.bool() for name, mask in _masks(batch).items()}
    positions = [float(f.sum()) for f in flags.values()]
    rows = [float(f.flatten(1).any(1).sum()) if f.dim() > 1 else float(f.sum()) for f in flags.values()]
    samples, *counts = totals([float(batch.size), *positions, *rows])
    return WholeBatch(samples, dict(zip(flags, counts)), dict(zip(flags, counts[len(flags) :])))


def part_means(terms: Terms, part: Batch, whole: WholeBatch) -> dict[str, Tensor]:
    """Returns what a part of a batch adds to the mean of each term over the whole batch.

    Sums are divided by counts of the whole batch, so gradients do not depend on the split. A scalar term counts as
    the mean over its part's samples.

    Raises:
        RecipeError: a term masks positions by something else than a mask of the batch, so its count is not known
            beforehand.
    """
    means: dict[str, Tensor] = {}
    for name, value in terms.items():
        term = as_term(value)
        if term.is_scalar:
            means[name] = term.values * (part.size / whole.samples)
        elif term.mask is None:
            means[name] = term.total() / (whole.samples * (term.values.numel() / part.size))
        else:
            means[name] = term.total() / max(_masked_count(name, term.mask, part, whole), 1.0)
    return means


def _masked_count(name: str, mask: Tensor, part: Batch, whole: WholeBatch) -> float:
    """Returns how many positions count over the whole batch, for a mask of the batch or its samples that have any."""
    flags, masks = mask.bool(), _masks(part)
    # Masks that are equal in this part may differ elsewhere in the batch, so the very same one comes first.
    for known in sorted(masks, key=lambda name: masks[name].data_ptr() != mask.data_ptr()):
        other = masks[known]
        if flags.shape == other.shape and torch.equal(flags, other.bool()):
            return whole.positions[known]
        if flags.dim() == 1 and other.dim() > 1 and torch.equal(flags, other.bool().flatten(1).any(1)):
            return whole.rows[known]
    raise RecipeError(
        f"the term '{name}' has a mask of its own, so its batch cannot be split; set train.micro_batches to 1 and "
        "start one process"
    )


def combine(
    means: Mapping[str, Tensor], weights: Mapping[str, Weight], progress: Progress, only: frozenset[str] | None = None
) -> Tensor:
    """Returns the weighted sum of term means, of the terms in ``only`` where given."""
    parts = [weight_at(weights[n], progress) * m for n, m in means.items() if only is None or n in only]
    if not parts:
        raise RecipeError(f"a player minimises none of the terms {sorted(means)}")
    return torch.stack([p.float() if p.dtype in (torch.float16, torch.bfloat16) else p for p in parts]).sum()


def check_finite(means: Mapping[str, Tensor], terms: Terms, batch: Batch, step: int) -> None:
    """Refuses a batch whose loss is not finite.

    Raises:
        NonFiniteLossError: names the term, the step and the samples.
    """
    for name, mean in means.items():
        if bool(torch.isfinite(mean)):
            continue
        values = as_term(terms[name]).values.detach()
        where = "its samples are " + str(batch["index"][:8].tolist())
        if values.dim() >= 1 and values.shape[0] == batch.size:
            bad = ~torch.isfinite(values).flatten(1).all(1) if values.dim() > 1 else ~torch.isfinite(values)
            where = f"samples {batch['index'][bad][:8].tolist()} of the data set"
        raise NonFiniteLossError(
            f"the loss term '{name}' is {mean.item()} at step {step}: {where}. "
            "Lower train.lr, set train.clip_norm, or look at these samples; the last good checkpoint is kept"
        )
