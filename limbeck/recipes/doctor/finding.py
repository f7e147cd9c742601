"""What the doctor says: one thing that is, or may be, wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from limbeck.errors import RecipeError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: ``error`` where training would go wrong, ``warning`` where it may, ``note`` where it is as it should
            be but other tools, or a reader, could trip over it.
        what: what it is, in one sentence.
        evidence: what was seen: numbers, tokens, texts.
        fix: what to change; empty where there is nothing to do.
    """

    severity: Severity
    what: str
    evidence: str
    fix: str = ""


def refuse(findings: Iterable[Finding]) -> None:
    """Raises the first error among findings.

    Raises:
        RecipeError: there is one.
    """
    for finding in findings:
        if finding.severity == "error":
            raise RecipeError(f"{finding.what}: {finding.evidence}. {finding.fix}")
