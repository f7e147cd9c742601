"""Adapters of architecture search."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from goldens.replay import Case, replays
from limbeck.students.search.score import View, compare


@replays("DisWOT scores (relation + semantic similarity)", "diswot")
def diswot(case: Case) -> dict[str, Any]:
    """What the search computes of two networks' views of one batch."""
    labels = case.input("labels")

    def view(role: str) -> View:
        pooled, weight = case.input(f"{role}_pooled"), case.input(f"{role}_fc_w")
        return View.of(case.input(f"{role}_feat"), pooled, labels, weight, case.input(f"{role}_fc_b"))

    student, teacher = view("student"), view("teacher")
    # The authors' code divides by no less.
    found = compare(student, teacher, eps=1e-12)
    results: dict[str, Tensor | float] = {
        "out.relation": found.relation,
        "out.semantic": found.semantic,
        "out.score": found.relation + found.semantic,
        "out.teacher_fc_grad": teacher.gradient,
        "out.student_fc_grad": student.gradient,
    }
    return results
