from __future__ import annotations

from pathlib import Path

from limbeck.recipes.arms import FinishedArms
from limbeck.report.language import _table, cache_verdicts


def _results(loss: float, kl: float):
    return {"token_loss": {"loss": loss}, "token_agreement": {"kl_teacher_student": kl}}


def test_a_cached_arm_is_held_against_the_live_one() -> None:
    shared = {"data": {"name": "d"}, "method": {"name": "word_kd"}, "transforms": [], "train": {"epochs": 2}}
    live = {**shared, "roles": {"teacher": {"model": "m", "cache": None}}}
    cached = {**shared, "roles": {"teacher": {"model": None, "cache": "folder"}}}
    sft = {**shared, "method": {"name": "sft"}, "roles": {"student": {"model": "s"}}}
    rollout = {**live, "transforms": ["rollout"]}
    rows = {
        "sft": (_results(6.0, 3.0),),
        "on_policy": (_results(5.0, 2.0),),
        "kd": (_results(5.5, 2.5), _results(5.7, 2.7)),
        "kd_topk": (_results(5.61, 2.5), _results(5.61, 2.8)),
    }
    stages = {"sft": sft, "on_policy": rollout, "kd": live, "kd_topk": cached}
    assert cache_verdicts(rows, stages) == (
        "kd_topk, from a cache, against kd, from the live teacher: held-out loss +0.0100, KL to the teacher +0.0500",
    )
    other = {**cached, "method": {"name": "gkd"}}
    assert cache_verdicts(rows, {**stages, "kd_topk": other}) == ()


def test_the_best_of_a_column_is_marked_where_one_is_better() -> None:
    rows = {
        label: ({"token_loss": {"loss": loss}, "size": {"parameters": 1000}},)
        for label, loss in (("teacher", 1.0), ("sft", 3.0), ("kd", 2.0))
    }
    table = _table(FinishedArms(Path(), "", {"sft": (), "kd": ()}, {}), rows)
    marked = {
        (row[0].text, column.title)
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if cell.best
    }
    assert "Parameters" in {column.title for column in table.columns}
    assert marked == {("kd", "Loss")}
