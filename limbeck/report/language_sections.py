"""What a page about language models shows of its arms; each section is left out where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.evaluate import Measure, evaluations, measures
from limbeck.evaluate.teacher_hacking import warning
from limbeck.report.arms import Arm
from limbeck.report.comparison import results_table
from limbeck.report.figures.language import arm_curves, by_frequency, golden_curves, lengths, proxy_against_golden
from limbeck.report.figures.palette import palette
from limbeck.report.figures.reliability import reliability
from limbeck.report.figures.training import loss_curves
from limbeck.report.sections import Cell, Column, Figure, Figures, Section, Table, Text

_LOSS = Measure("token_loss.loss", "Held-out loss", "number", "lower")
_TABLES = {
    "Results": ("token_loss", "token_agreement"),
    "Frequent and rare tokens, calibration": ("frequency_bands", "token_calibration"),
    "What is written": ("text_overlap", "repetition"),
    "What is given away of the training text": ("memorization", "canaries"),
    "Size and speed": ("size", "throughput"),
    "Course of training and tasks": ("teacher_hacking", "harness"),
}
_ELSEWHERE = ("writing",)
_LOSSES_SHOWN = 2


def is_text(stage: Mapping[str, Any]) -> bool:
    """Whether a recipe's stage trains a language model."""
    return stage.get("task") == "causal-lm"


def language_sections(arms: Sequence[Arm]) -> list[Section]:
    """Returns the sections about language models: verdict, tables, drawings, texts side by side."""
    known: list[Section | None] = [
        Text("", (verdict(arms),), "lead"),
        *tables(arms),
        hacking_warnings(arms),
        *figures(arms),
        *_harness(arms),
        *writing_tables(arms),
    ]
    return [section for section in known if section is not None]


def verdict(arms: Sequence[Arm]) -> str:
    """Says which student has the lowest held-out loss, beside the others and the teacher."""
    students = [(arm, spread) for arm in arms if arm.kind != "teacher" and (spread := arm.spread(_LOSS))]
    if not students:
        return "No run in this report was judged on held-out text."
    best, loss = min(students, key=lambda pair: pair[1].mean)
    said = [f"{best.name} has a held-out loss of {_LOSS.text(loss)} nats a token"]
    others = [f"{arm.name} {_LOSS.text(spread)}" for arm, spread in students if arm is not best]
    said += [f"the other students {', '.join(others)}" if len(others) > 1 else others[0]] if others else []
    said += [f"the {arm.name} {_LOSS.text(s)}" for arm in arms if arm.kind == "teacher" and (s := arm.spread(_LOSS))]
    return "; ".join(said) + "."


def tables(arms: Sequence[Arm]) -> list[Table | None]:
    """Returns a table a theme, of the measures that the arms have."""
    grouped = {*_ELSEWHERE, *(name for names in _TABLES.values() for name in names)}
    further = [e.name for e in evaluations.entries() if e.name not in grouped]
    themes = {**_TABLES, "Further measures": tuple(further)}
    return [results_table(title, arms, found) for title, names in themes.items() if (found := measures(names))]


def hacking_warnings(arms: Sequence[Arm]) -> Text | None:
    """Returns a note about every arm that hacks its teacher; None where none does."""
    said = [f"{name}: {text}." for name, pair in arm_curves(arms).items() if (text := warning(*pair))]
    return Text("Warnings", tuple(said), tone="note") if said else None


def figures(arms: Sequence[Arm]) -> list[Figures]:
    """Returns the drawings, in groups."""
    looks = palette(arms)
    curves = arm_curves(arms)
    drawn: dict[str, Sequence[Figure | None]] = {
        "Where the teacher is kept, and how sure students are": (
            by_frequency(arms, looks),
            by_frequency(arms, looks, "loss"),
            reliability(arms, looks, evaluation="token_calibration"),
            lengths(arms, looks),
        ),
        "The course of training": (
            golden_curves(curves, looks),
            proxy_against_golden(curves, looks),
            *(loss_curves(arm) for arm in [a for a in arms if a.kind == "distilled"][:_LOSSES_SHOWN]),
        ),
    }
    shown = {title: tuple(f for f in group if f is not None) for title, group in drawn.items()}
    return [Figures(title, group) for title, group in shown.items() if group]


def _harness(arms: Sequence[Arm]) -> list[Table]:
    """A table of every metric of every task of lm-evaluation-harness."""
    known = {
        arm.name: arm.results[0]["harness"]["tasks"] for arm in arms if arm.results and "harness" in arm.results[0]
    }
    columns = list(dict.fromkeys((t, m) for tasks in known.values() for t, metrics in tasks.items() for m in metrics))
    columns = [(task, metric) for task, metric in columns if not metric.endswith("_stderr")]
    if not columns:
        return []
    rows = []
    for name, tasks in known.items():
        values = [tasks.get(task, {}).get(metric) for task, metric in columns]
        rows.append((Cell(name), *(Cell("–" if v is None else f"{v:.4g}", v) for v in values)))
    heads = (Column("Model", numeric=False), *(Column(f"{task}, {metric}") for task, metric in columns))
    return [Table("Tasks of lm-evaluation-harness", heads, tuple(rows), "First seed.")]


def writing_tables(arms: Sequence[Arm]) -> list[Table]:
    """Returns what everybody writes after the same prompts, a table a prompt."""
    known = {
        arm.name: arm.results[0]["writing"]["samples"]
        for arm in arms
        if arm.kind != "teacher" and arm.results and arm.results[0].get("writing", {}).get("samples")
    }
    if not known:
        return []
    first = next(iter(known.values()))
    alike = {n: s for n, s in known.items() if [x["prompt"] for x in s] == [x["prompt"] for x in first]}
    return [_after(number, sample, alike) for number, sample in enumerate(first)]


def _after(number: int, sample: Mapping[str, str], known: Mapping[str, Sequence[Mapping[str, str]]]) -> Table:
    rows = [("the text", sample["truth"])]
    teacher = next((s[number]["teacher"] for s in known.values() if "teacher" in s[number]), None)
    rows += [("teacher", teacher)] if teacher is not None else []
    rows += [(name, samples[number]["student"]) for name, samples in known.items()]
    cells = tuple((Cell(who), Cell(visible(text))) for who, text in rows)
    columns = (Column("Who", numeric=False), Column("writes on, greedily", numeric=False))
    return Table(f"After “… {visible(sample['prompt'])[-60:].partition(' ')[2]}”", columns, cells)


def visible(text: str) -> str:
    """Returns a text in one line; what is empty or only line breaks is told."""
    return " ".join(text.split()) or "(nothing but white space)"
