"""Whether a run hacks its teacher: it comes ever closer to it, and moves away from the text that counts.

The detector looks at two curves over the epochs. The *golden* one is held-out loss, or the distance to an oracle where
there is one. The *proxy* is the distance to the teacher on held-out text, or, where that was not measured, the training
loss. Reference: "On teacher hacking in language model distillation", arXiv 2502.02671.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.reporter import Reporter
from limbeck.errors import MissingExtraError
from limbeck.evaluate.base import Results, Subject, evaluations, numbers
from limbeck.evaluate.language import TASK
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.significance import improvement_test
from limbeck.evaluate.tokens import measure_tokens
from limbeck.functional.teacher_hacking import PowerLaw, Turn, power_law, teacher_hacking
from limbeck.hyperparameters import Positive
from limbeck.schedules import Progress
from limbeck.tasks.base import Task

TOLERANCE, LEVEL = 0.01, 0.05
_BLOCKS = 64
_FEWEST_BLOCKS = 8

GOLDEN, PROXY, BLOCKS = "held_out_loss", "held_out_kl", "held_out_blocks"
"""Names of an epoch's numbers: mean loss a held-out token, mean KL to the teacher, loss by block of held-out rows."""


@dataclass(frozen=True)
class Curves:
    """Two curves of one run.

    Attributes:
        epochs: number of each point, from 1.
        proxy: distance to the teacher, or training loss.
        golden: held-out loss, or distance to an oracle.
        blocks: for each point the golden number on parts of the data, for a paired test; empty where unknown.
        proxy_name: what the proxy is, in words.
        golden_name: what the golden curve is, in words.
    """

    epochs: tuple[int, ...]
    proxy: tuple[float, ...]
    golden: tuple[float, ...]
    blocks: tuple[tuple[float, ...], ...] = ()
    proxy_name: str = "KL to the teacher on held-out text"
    golden_name: str = "held-out loss"


@dataclass(frozen=True)
class Judgement:
    """What two curves show.

    Attributes:
        turn: whether and where the golden curve turned.
        p: probability of such a rise by chance; None where it is not known.
        law: the power law of the proxy's beginning; None below four points.
    """

    turn: Turn
    p: float | None
    law: PowerLaw | None

    @property
    def hacking(self) -> bool:
        """Whether the golden curve turned by more than the tolerance and more than chance."""
        return self.turn.hacking and (self.p is None or self.p < LEVEL)


def in_blocks(values: Tensor, rows: Tensor) -> list[float]:
    """Returns means over up to 64 parts of neighbouring rows: enough for a paired test, few enough to be kept.

    Args:
        values: ``[N]`` a number at each place.
        rows: ``[N]`` the row of each place; rows stay together.

    Example:
        >>> in_blocks(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([4, 4, 7]))
        [2.0, 5.0]
    """
    _, number = rows.unique(return_inverse=True)
    count = int(number.max()) + 1
    block = number * min(count, _BLOCKS) // count
    sums = torch.bincount(block, weights=values.double())
    return (sums / torch.bincount(block)).tolist()


def epoch_numbers(
    student: nn.Module, loader: Any, task: Task, teacher: nn.Module | None = None
) -> dict[str, float | list[float]]:
    """Returns what is logged of a language model after an epoch: held-out loss and, with a teacher, the KL to it.

    Args:
        student: the model as it is now.
        loader: held-out text.
        task: how models are run.
        teacher: a live model to compare with.
    """
    models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    tokens = measure_tokens(models, loader, task)
    found: dict[str, float | list[float]] = {
        GOLDEN: tokens.loss["student"].mean().item(),
        BLOCKS: in_blocks(tokens.loss["student"], tokens.rows),
    }
    if tokens.compared:
        found[PROXY] = tokens.compared["forward"].double().mean().item()
    return found


def curves_of(history: Sequence[Mapping[str, Any]]) -> Curves | None:
    """Returns the curves of a run's last stage; None where fewer than two epochs were evaluated on text."""
    stage = history[-1].get("stage") if history else None
    points = [r for r in history if r.get("stage") == stage and GOLDEN in r.get("evaluation", {})]
    if len(points) < 2:
        return None
    found = [r["evaluation"] for r in points]
    measured = all(PROXY in e for e in found)
    known = all(len(e.get(BLOCKS, ())) >= _FEWEST_BLOCKS for e in found)
    return Curves(
        tuple(r["epoch"] + 1 for r in points),
        tuple(e[PROXY] if measured else r["loss"] for r, e in zip(points, found)),
        tuple(e[GOLDEN] for e in found),
        tuple(tuple(e[BLOCKS]) for e in found) if known else (),
        Curves.proxy_name if measured else "training loss",
    )


def judge(curves: Curves, *, tolerance: float = TOLERANCE) -> Judgement:
    """Says whether two curves show teacher hacking.

    The rise since the best epoch counts if it is above ``tolerance`` and, where the parts of the data are known, a
    one-sided paired t-test over them has a probability below 5 % after Bonferroni's correction for the epochs among
    which the best was chosen.

    Args:
        curves: the curves.
        tolerance: rise that counts, as a part of the lowest value.
    """
    proxy, golden = torch.tensor(curves.proxy), torch.tensor(curves.golden)
    finite = bool((proxy.isfinite() & golden.isfinite()).all())
    turn = teacher_hacking(proxy, golden, tolerance=tolerance) if finite else Turn(False, 0, 0.0)
    p = _chance(curves, turn) if turn.rise > 0 else 1.0
    enough = len(proxy) >= 4 and int((proxy[: len(proxy) // 2] > 0).sum()) >= 2
    return Judgement(turn, p, power_law(proxy) if enough and finite else None)


def _chance(curves: Curves, turn: Turn) -> float | None:
    if not curves.blocks or turn.best == len(curves.blocks) - 1:
        return None
    rises = [last - best for last, best in zip(curves.blocks[-1], curves.blocks[turn.best])]
    try:
        found = improvement_test(rises)
    except MissingExtraError:
        return None
    return min(found.p * (len(curves.epochs) - 1), 1.0)


def warning(curves: Curves, judged: Judgement) -> str:
    """Returns what to tell a person; empty where there is nothing to worry about."""
    if not judged.hacking:
        return ""
    best = judged.turn.best
    chance = "" if judged.p is None else f", p = {judged.p:.1g}"
    fix = "draw completions anew (rollout, teacher samples), use more prompts, or stop there"
    meaning = (
        "the student still comes closer to its teacher, but no longer to the text (teacher hacking)"
        if curves.proxy_name == Curves.proxy_name
        else "the student fits its training text better and other text worse; `evaluate: [teacher_hacking]` also "
        "measures the distance to the teacher on held-out text"
    )
    return (
        f"{curves.golden_name} was lowest after epoch {curves.epochs[best]} ({curves.golden[best]:.4g}) and is "
        f"{judged.turn.rise:.1%} above that now{chance}, while the {curves.proxy_name} falls: {meaning}; {fix}"
    )


@evaluations.register(
    "teacher_hacking",
    title="Teacher hacking: whether held-out loss turned while the distance to the teacher went on to fall",
    task=TASK,
    measures=(
        Measure("teacher_hacking.rise", "Rise", "fraction", "lower", "Golden curve: last over lowest value, minus 1."),
    ),
)
def run_hacking(subject: Subject, *, tolerance: Positive = TOLERANCE) -> Results:
    """Returns whether the run is ``hacking``, its ``best_epoch``, ``rise``, ``p``, and the ``power_law`` of the proxy.

    A recipe that names this evaluation also measures the KL to the teacher on held-out text after every epoch that is
    evaluated (``train.evaluate_every``), and warns while it runs.

    Args:
        subject: what is judged.
        tolerance: rise that counts, as a part of the lowest value.
    """
    curves = curves_of(subject.history)
    if curves is None:
        return {"note": "fewer than two epochs were evaluated on held-out text; set train.evaluate_every to 1"}
    judged = judge(curves, tolerance=tolerance)
    return {
        "hacking": judged.hacking,
        "best_epoch": curves.epochs[judged.turn.best],
        "rise": judged.turn.rise,
        "p": judged.p,
        "proxy": curves.proxy_name,
        "golden": curves.golden_name,
        **({} if judged.law is None else {"power_law": law_numbers(judged.law)}),
    }


def law_numbers(law: PowerLaw) -> Results:
    """Returns a power law as JSON-able numbers."""
    return {"exponent": law.exponent, "intercept": law.intercept, "deviations": numbers(law.deviations.tolist())}


class HackingWatch(Reporter):
    """Passes everything on, and warns once when a run hacks its teacher after two evaluated epochs in a row.

    A single epoch above the best one is often no more than the noise of training, which no test over the data sees.

    Args:
        reporter: who is told.
        history: gives the records of earlier epochs when a stage starts, those of a run that is resumed.
    """

    def __init__(self, reporter: Reporter, history: Any = tuple) -> None:
        self._inner, self._earlier = reporter, history
        self._history: list[Mapping[str, Any]] = []
        self._before, self._warned = "", False

    def note(self, message: str) -> None:
        """Passes a message on."""
        self._inner.note(message)

    def stage_started(self, name: str, progress: Progress) -> None:
        """Takes up the records of the stage so far."""
        self._history = [r for r in self._earlier() if r.get("stage") == name]
        self._before, self._warned = self._said(), False
        self._inner.stage_started(name, progress)

    def step_done(self, progress: Progress, loss: float) -> None:
        """Passes a step on."""
        self._inner.step_done(progress, loss)

    def measured(self, rates: Mapping[str, float]) -> None:
        """Passes rates on."""
        self._inner.measured(rates)

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        """Looks at the curves with the epoch that is done."""
        self._inner.epoch_done(record)
        self._history.append(record)
        if "evaluation" not in record:
            return
        said = self._said()
        if said and self._before and not self._warned:
            self._inner.note(f"warning: {said}")
            self._warned = True
        self._before = said

    def _said(self) -> str:
        curves = curves_of(self._history)
        return "" if curves is None else warning(curves, judge(curves))

    def stage_done(self, name: str) -> None:
        """Passes the end on."""
        self._inner.stage_done(name)
