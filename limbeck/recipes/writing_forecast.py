"""What it will take to have text written, from what a few prompts took: time, tokens, memory, money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.evaluate.memory import weights_bytes
from limbeck.schedules import Progress, weight_at

_POINTS = 64


@dataclass(frozen=True)
class WriterForecast:
    """What one role will write.

    Attributes:
        role: its name.
        tokens: tokens of all its answers.
        seconds: how long that takes here; None where a journal has answered and not the server.
        memory: bytes of its weights and of keys and values while it writes; 0 for a server.
        price: what a server will be paid, in the currency of the recipe; None where it names no prices.
    """

    role: str
    tokens: int
    seconds: float | None
    memory: int = 0
    price: float | None = None


@dataclass(frozen=True)
class WritingForecast:
    """What the text of a stage takes that is not written yet.

    Attributes:
        prompts: all prompts.
        tried: those that were answered to find out.
        rows: rows that a few answers gave, and that all will give.
        writers: what each role writes.
    """

    prompts: int
    tried: int
    rows: tuple[int, int]
    writers: tuple[WriterForecast, ...]

    @property
    def seconds(self) -> float:
        """Time of all that is known to take time."""
        return sum(writer.seconds or 0.0 for writer in self.writers)

    @property
    def growth(self) -> float:
        """How many times more rows there will be."""
        return self.rows[1] / max(self.rows[0], 1)


@dataclass(frozen=True)
class RolloutForecast:
    """What models write while a student is trained.

    Attributes:
        tokens: tokens of the whole stage.
        speed: tokens a second.
        share: part of the rows whose completions are written anew, the mean over the stage.
        trial_seconds: time of writing a whole batch.
        memory: bytes of keys and values while models write.
        adaptive: whether the share follows the held-out loss, so that only its beginning is known.
    """

    tokens: int
    speed: float
    share: float
    trial_seconds: float
    memory: int
    adaptive: bool


def key_value_bytes(model: nn.Module, *, rows: int, tokens: int) -> int:
    """Returns the bytes of keys and values that a decoder keeps of so many rows; 0 where its shape is not known.

    Args:
        model: a language model of transformers.
        rows: sequences that are written at a time.
        tokens: of a row, its prompt included. Layers with a sliding window keep less.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    if not layers or not heads:
        return 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = next(model.parameters()).element_size()
    return int(2 * layers * shared * width * rows * tokens * size)


def model_bytes(model: nn.Module, *, rows: int, tokens: int) -> int:
    """Returns the bytes of a model that writes: its weights, keys and values."""
    return weights_bytes(model) + key_value_bytes(model, rows=rows, tokens=tokens)


def rollout_forecast(stage: Any, batch_tokens: Sequence[tuple[int, float]]) -> RolloutForecast | None:
    """Returns what the rollouts of a stage take; None where it has none.

    Args:
        stage: the stage.
        batch_tokens: for each rollout the tokens and the seconds of a whole batch, as :func:`tried_rollouts` found.
    """
    if not batch_tokens:
        return None
    rollout: Any = _rollouts(stage)[0]
    (tokens, seconds), *_ = batch_tokens
    share = _fresh_share(rollout, stage.loader.steps_per_epoch, stage.settings.epochs)
    models = [model for o in rollout.observers.values() if isinstance(model := getattr(o, "model", None), nn.Module)]
    width = int(getattr(getattr(stage.loader, "source", None), "context", 0)) + 1
    rows = rollout.rows or stage.settings.batch_size * rollout.samples * rollout.every
    return RolloutForecast(
        tokens=round(tokens * share * stage.total_steps),
        speed=tokens / seconds if seconds else 0.0,
        share=share,
        trial_seconds=seconds,
        memory=sum(key_value_bytes(model, rows=rows, tokens=width) for model in models),
        adaptive=hasattr(rollout.sources.probability, "threshold"),
    )


def tried_rollouts(stage: Any) -> list[tuple[int, float]]:
    """Returns the tokens and the seconds that each rollout of a stage takes for its first batch."""
    rollouts = _rollouts(stage)
    before = [rollout.log.written for rollout in rollouts]
    if rollouts:
        stage.first_batch()
    return [
        (rollout.log.written[0] - tokens, rollout.log.written[1] - seconds)
        for rollout, (tokens, seconds) in zip(rollouts, before)
    ]


def _rollouts(stage: Any) -> list[Any]:
    from limbeck.transforms.rollout import Rollout

    return [t for t in stage.transforms if isinstance(t, Rollout) and t.runs]


def _fresh_share(rollout: Any, steps_per_epoch: int, epochs: int) -> float:
    """Returns which part of the rows is written anew, the mean over a stage."""
    from limbeck.functional.off_policy import fresh_share

    total, found = steps_per_epoch * epochs, []
    for point in range(_POINTS):
        progress = Progress(point * total // _POINTS, steps_per_epoch, epochs)
        share = 1.0 if rollout.replay is None else fresh_share(rollout.replay.share, progress.fraction)
        found.append(share * min(weight_at(rollout.sources.probability, progress), 1.0))
    return sum(found) / len(found)
