"""What transforms tell of themselves: numbers for the metrics, lines for the run folder, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.engine.run_folder import RunFolder

Told = tuple[list[dict[str, Any]], dict[str, float]]
"""Lines for ``rollouts.jsonl``, and what differs from run to run."""

LOGS = ("metrics.jsonl", "rollouts.jsonl")
"""Files whose lines are the same for an interrupted and an uninterrupted run."""


def rates(transforms: Sequence[Any]) -> dict[str, float]:
    """Returns how fast transforms are, such as the tokens that a rollout writes a second."""
    found: dict[str, float] = {}
    for transform in transforms:
        found |= transform.rates() if hasattr(transform, "rates") else {}
    return found


def tell(transforms: Sequence[Any], record: dict[str, Any]) -> Told:
    """Adds to an epoch's record what transforms report; they in turn hear what its evaluation found.

    Returns:
        Lines for ``rollouts.jsonl``, and rates.
    """
    lines: list[dict[str, Any]] = []
    for transform in transforms:
        if not hasattr(transform, "report"):
            continue
        if "evaluation" in record:
            transform.heard(record["evaluation"])
        if numbers := transform.report():
            record["rollouts"] = {**record.get("rollouts", {}), **numbers}
        lines += [{"stage": record["stage"], "epoch": record["epoch"], **line} for line in transform.records()]
    return lines, rates(transforms)


def write(folder: RunFolder, record: dict[str, Any], told: Told) -> None:
    """Writes an epoch's line of metrics, the lines of transforms, and rates beside them."""
    lines, speeds = told
    folder.log("metrics.jsonl", record)
    for line in lines:
        folder.log("rollouts.jsonl", line)
    if speeds:
        folder.log("timing.jsonl", {"stage": record["stage"], "epoch": record["epoch"], **speeds})
