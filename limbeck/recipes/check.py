"""Whether a recipe can work, and what it will cost, found out in seconds and without training."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.recipes.build import BuiltStage, build_stage, quick_look
from limbeck.recipes.doctor import Finding, MemoryForecast, examine, forecast_memory, step_time
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import check_evaluations
from limbeck.recipes.schema import Recipe
from limbeck.recipes.writing_forecast import RolloutForecast, WritingForecast, rollout_forecast, tried_rollouts
from limbeck.signals import Batch, as_term
from limbeck.teachers.ensemble import models_of


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        tables: rows ``(what, value)`` by title, a table a stage.
        verdict: one sentence.
        findings: what is wrong, may be wrong or is worth knowing, by the title of the stage's table.
    """

    tables: dict[str, list[tuple[str, str]]]
    verdict: str
    findings: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Number of findings with which training would go wrong."""
        return sum(f.severity == "error" for found in self.findings.values() for f in found)


def check_recipe(
    recipe: str | Path | dict[str, Any] | Recipe, overrides: Sequence[str] = (), *, trust: bool = False
) -> Checked:
    """Builds every stage, takes a few steps on copies of nothing that is kept, and forecasts time and memory.

    Raises:
        LimbeckError: the recipe cannot work; the message says why and how to mend it.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    check_evaluations(loaded)
    tables: dict[str, list[tuple[str, str]]] = {}
    findings: dict[str, list[Finding]] = {}
    seconds = 0.0
    for spec in loaded.stages:
        # Weights of earlier stages do not exist yet; shapes, time and memory do not depend on them.
        built = build_stage(loaded, spec, trust=trust, earlier=lambda name, model: None)
        title = f"stage {spec.name}: {spec.method_name} on {spec.data.name}"
        tables[title] = _parts(built)
        if built.text:
            findings[title] = examine(built, spec)
        if not any(f.severity == "error" for f in findings.get(title, ())):
            # A step of what is known to be wrong would say less than the findings do.
            rows, cost = _measured(built)
            tables[title] += rows
            seconds += cost
    return Checked(tables, _verdict(findings, seconds), findings)


def _verdict(findings: Mapping[str, Sequence[Finding]], seconds: float) -> str:
    counts = Counter(f.severity for found in findings.values() for f in found)
    if counts["error"]:
        return f"the recipe should not be run: {counts['error']} error{'s' * (counts['error'] > 1)}, see the fixes"
    looked = f", with {counts['warning']} warning{'s' * (counts['warning'] > 1)}" if counts["warning"] else ""
    return f"the recipe works{looked}; it will take about {duration(seconds)} on this machine"


def _parts(built: BuiltStage) -> list[tuple[str, str]]:
    """What a stage is made of."""
    data, batch = built.data, built.stage.first_batch()
    tried = "" if data.to_write is None else f"about {data.to_write.rows[1]} when all is written, to try "
    return [
        ("samples", f"{tried}{len(data.train)} to train, {len(data.held)} to judge ({data.split})"),
        *(_text_rows(built, batch) if built.text else [("inputs", _inputs(built, batch))]),
        *((f"role {name}", _role(name, built)) for name in built.stage.observers),
        *((f"taps of {name}", taps) for name, taps in _taps(built)),
    ]


def _measured(built: BuiltStage) -> tuple[list[tuple[str, str]], float]:
    """What a stage gives and costs, found by a few steps of which nothing is kept."""
    stage, data = built.stage, built.data
    terms = _terms(built)
    memory = forecast_memory(stage, vocabulary=data.train.info.num_classes if built.text else 0)
    time_of, told = step_time(stage), tried_rollouts(stage)
    rollouts = rollout_forecast(stage, told)
    # Where data or old samples take the place of some rollouts, these cost nothing.
    step = time_of.trained + time_of.made
    if rollouts is not None:
        step -= min((1 - rollouts.share) * rollouts.trial_seconds, time_of.made)
    started = time.perf_counter()
    quick_look(stage.student(), data, built.task)
    evaluation = time.perf_counter() - started
    every = stage.settings.evaluate_every
    evaluations = stage.settings.epochs // every if every else 1
    writing, steps = data.to_write, stage.total_steps
    if writing is not None:
        steps = -(-writing.rows[1] // stage.settings.batch_size) * stage.settings.epochs
    total = step * steps + evaluation * evaluations + (writing.seconds if writing is not None else 0.0)
    rows = [
        ("terms", terms),
        *(_writing_rows(writing) if writing is not None else []),
        ("steps", f"{steps} of {1000 * step:.1f} ms, and {evaluations} evaluations of {evaluation:.2f} s"),
        *(_rollout_rows(rollouts, steps / stage.total_steps) if rollouts is not None else []),
        ("time", duration(total)),
        *_memory_rows(memory),
    ]
    return rows, total


def _writing_rows(writing: WritingForecast) -> list[tuple[str, str]]:
    """What it takes to have the training text written, by role."""
    found = []
    for writer in writing.writers:
        took = "an unknown time, since a journal answered" if writer.seconds is None else duration(writer.seconds)
        paid = "" if writer.price is None else f", for about {writer.price:.3g}"
        kept = f", with {_mebibytes(writer.memory)} of weights, keys and values" if writer.memory else ""
        found.append(
            (f"text by {writer.role}", f"about {writer.tokens:,} tokens after {writing.prompts:,} prompts, "
             f"{took}{paid}{kept} (from {writing.tried} prompts)")
        )  # fmt: skip
    return found


def _rollout_rows(rollouts: RolloutForecast, longer: float) -> list[tuple[str, str]]:
    """What is written while the student trains."""
    tokens = round(rollouts.tokens * longer)
    least = "at least " if rollouts.adaptive else "about "
    taken = duration(tokens / rollouts.speed) if rollouts.speed else "no time"
    return [
        ("rollouts", f"{least}{tokens:,} tokens at {rollouts.speed:,.0f} a second, {taken} of the whole; "
         f"{rollouts.share:.0%} of the rows are written anew, {_mebibytes(rollouts.memory)} of keys and values")
    ]  # fmt: skip


def _memory_rows(memory: MemoryForecast) -> list[tuple[str, str]]:
    parts = {
        **{f"weights of {role}": size for role, size in memory.weights.items()},
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        f"one step ({_mebibytes(memory.activations)} of it activations)": memory.step,
    }
    said = ", ".join(f"{_mebibytes(size)} {name}" for name, size in parts.items())
    rows = [("memory", f"{_mebibytes(memory.total)}: {said}")]
    if memory.logits:
        rows.append(("logits", f"all of a batch at once would take {_mebibytes(memory.logits)}; losses take chunks"))
    return rows


def _inputs(built: BuiltStage, batch: Batch) -> str:
    return f"{tuple(batch['inputs'].shape)}, {built.data.train.info.num_classes} classes"


def _text_rows(built: BuiltStage, batch: Batch) -> list[tuple[str, str]]:
    """What is known of text: its tokenizer, how full batches are, what was cut."""
    source: Any = built.data.train
    seen = int(batch["inputs"]["attention_mask"].sum())
    size = batch["labels"].numel()
    tokenizer = source.tokenizer
    rows = [
        ("tokenizer", f"{tokenizer.name}, {tokenizer.vocabulary:,} tokens, fingerprint {tokenizer.fingerprint}"),
        ("tokens", _tokens(built, source)),
        ("batch", f"{tuple(batch['labels'].shape)}, {seen / size:.0%} of it tokens"),
    ]
    return [*rows, *(("note", note) for note in source.notes)]


def _tokens(built: BuiltStage, source: Any) -> str:
    whole = f"{source.targets:,} to predict an epoch, {len(source.sequences):,} sequences"
    writing = built.data.to_write
    return (
        whole if writing is None else f"about {round(source.targets * writing.growth):,} when all is written; {whole}"
    )


def _role(name: str, built: BuiltStage) -> str:
    observer = built.stage.observers[name]
    model = getattr(observer, "model", None)
    kind = "trains" if name in built.stage.learners else "frozen"
    if not isinstance(model, nn.Module):
        members = models_of(observer)
        size = sum(p.numel() for member in members for p in member.parameters())
        several = f" of {len(members)} live models, {size:,} parameters, frozen" if members else ""
        return type(observer).__name__ + several
    return f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, {kind}"


def _taps(built: BuiltStage) -> list[tuple[str, str]]:
    found = []
    for name, observer in built.stage.observers.items():
        groups = observer.taps.groups if hasattr(observer, "taps") else {}
        if groups:
            found.append((name, "; ".join(f"{group}: {', '.join(paths)}" for group, paths in groups.items())))
    return found


def _terms(built: BuiltStage) -> str:
    batch = built.stage.first_batch()
    with torch.no_grad():
        terms = built.stage.terms(batch)
    weights = built.stage.method.weights
    return ", ".join(
        f"{name} {float(as_term(value).mean()):.4g} (weight {_weight(weights[name])})" for name, value in terms.items()
    )


def _weight(weight: Any) -> str:
    return str(weight) if callable(weight) else f"{weight:g}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Returns a duration as people say it.

    Example:
        >>> duration(42), duration(250), duration(9000)
        ('42 s', '4 min 10 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{max(whole, 1)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
