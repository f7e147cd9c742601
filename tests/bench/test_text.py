"""Comparisons of language models: baselines and a criterion of their own, of which less may be better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import limbeck.bench.run
from limbeck.bench.columns import facts_of
from limbeck.bench.orderings import FAILS, HOLDS, Ordering, judge
from limbeck.bench.page import findings, write_page
from limbeck.bench.run import run_folder, run_one, run_suite
from limbeck.bench.suite import Suite
from limbeck.bench.table import Row, apart, read_csv, summarise, write_csv
from limbeck.bench.terms import ACCURACY, terms_of
from limbeck.errors import RecipeError
from limbeck.recipes.load import as_plain
from limbeck.recipes.schema import Recipe
from limbeck.recommend import Wish, recommend
from limbeck.report import explanation

LOSS = terms_of("token_loss.loss", ("sft", "word_kd"), ["token_loss.accuracy"])
TINY: dict[str, Any] = {"name": "llama", "layers": 1, "width": 16, "heads": 2}
DATA: dict[str, Any] = {
    "name": "persuasion", "limit": {"train": 32, "test": 8}, "options": {"tokenizer": "bytes", "context": 32},
}  # fmt: skip
TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "lr": 0.01}
SUITE: dict[str, Any] = {
    "baselines": ["sft", "word_kd"],
    "criterion": "token_loss.loss",
    "columns": ["token_agreement.kl_teacher_student"],
    "prepare": {
        "teacher": {
            "task": "causal-lm", "data": DATA, "roles": {"student": {"model": TINY}}, "method": "sft",
            "train": {**TRAIN, "epochs": 3},
        },
        "aligned": {
            "task": "causal-lm", "data": DATA, "method": "sft", "train": TRAIN,
            "roles": {"student": {"model": TINY, "weights": "$prepared/teacher"}},
        },
    },
    "recipe": {
        "task": "causal-lm",
        "data": DATA,
        "roles": {"teacher": {"model": TINY, "weights": "$prepared/teacher"}, "student": {"model": TINY}},
        "train": TRAIN,
        "evaluate": ["token_loss", "token_agreement"],
    },
    "seeds": [0],
    "arms": {"reverse": {"method": {"name": "word_kd", "divergence": "reverse_kl"}}},
}  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own, which every comparison of the command has, take seconds to start."""

    def run_here(recipes: dict[tuple[str, int], Recipe], folder: Path, **_: Any) -> Iterator[tuple[str, str]]:
        for (label, seed), recipe in recipes.items():
            yield f"{label}-seed{seed}", run_one(as_plain(recipe), str(run_folder(folder, label, seed)), False)

    monkeypatch.setattr(limbeck.bench.run, "run_recipes", run_here)


def suite(**changes: Any) -> Suite:
    return Suite.model_validate({**SUITE, **changes})


def row(arm: str, seed: int, loss: float, **further: float) -> Row:
    measures = {"token_loss.loss": loss, "token_loss.teacher.loss": 1.0, **further}
    return Row("s", "d", "t", "u", arm, arm, seed, 1, "test", *[math.nan] * 6, "p", measures=measures)


def rows() -> list[Row]:
    levels = {"sft": 2.0, "word_kd": 1.8, "gkd": 1.9, "uld": 2.2}
    return [row(arm, s, level + 0.01 * s) for arm, level in levels.items() for s in range(3)]


def test_the_lower_loss_comes_first_and_gains_are_positive_where_an_arm_is_better() -> None:
    summaries = summarise(rows(), LOSS)
    assert [s.arm for s in summaries] == ["word_kd", "gkd", "sft", "uld"]
    by_arm = {s.arm: s for s in summaries}
    assert by_arm["gkd"].gain == pytest.approx(0.1)
    assert by_arm["gkd"].gain_over_plain == pytest.approx(-0.1)
    assert apart(by_arm["gkd"], by_arm["sft"]) == 1
    assert apart(by_arm["uld"], by_arm["sft"]) == -1


def test_findings_tell_of_the_suite_s_baselines_in_its_unit() -> None:
    said = findings(summarise(rows(), LOSS))
    assert said[0].startswith("Best mean loss: word_kd, 1.810 ± 0.010 over 3 seeds")
    assert "Against the arm sft (2.010 ± 0.010): gkd, word_kd are better and uld is worse" in said[1]
    assert "Against the arm word_kd (1.810 ± 0.010): no arm is better and gkd, sft, uld are worse" in said[2]


def test_orderings_are_held_against_losses() -> None:
    arms = {s.arm: s for s in summarise(rows(), LOSS)}
    assert judge(Ordering("word_kd", "sft", ""), arms) == (HOLDS, pytest.approx(0.2))
    assert judge(Ordering("uld", "sft", ""), arms) == (FAILS, pytest.approx(-0.2))


def test_tables_show_the_chosen_measures_and_nothing_of_classifiers() -> None:
    measured = [row("sft", 0, 2.0, **{"token_loss.accuracy": 0.4, "token_loss.perplexity": 7.4})]
    assert [fact.title for fact in facts_of(summarise(measured, LOSS))] == [
        "Loss", "Over sft", "Over word_kd", "Tokens right",
    ]  # fmt: skip


def test_a_table_of_text_survives_the_file_without_columns_of_classifiers(tmp_path: Path) -> None:
    write_csv(rows(), tmp_path / "t.csv")
    head = (tmp_path / "t.csv").read_text().splitlines()[0].split(",")
    assert not {"accuracy", "agreement", "ece", "nll", "teacher_accuracy"} & set(head)
    again = read_csv(tmp_path / "t.csv")
    assert [r.value("token_loss.loss") for r in again] == pytest.approx([r.value("token_loss.loss") for r in rows()])
    assert math.isnan(again[0].value(ACCURACY))


def test_a_page_names_the_teacher_by_the_criterion(tmp_path: Path) -> None:
    page = write_page("text", "about", rows(), tmp_path / "page.html", LOSS).read_text()
    assert "(loss 1.000)" in page
    assert "Sorted by loss." in page
    assert "Accuracy" not in page


def test_a_suite_runs_on_text_and_builds_on_what_was_prepared(tmp_path: Path, in_this_process: None) -> None:
    import yaml

    where = tmp_path / "text.yaml"
    where.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    page = run_suite(str(where), out=tmp_path / "out").read_text()
    found = read_csv(tmp_path / "out" / "results.csv")
    assert {r.arm for r in found} == {"sft", "word_kd", "reverse"}
    assert all(0 < r.value("token_loss.loss") < 6 for r in found)
    assert len({r.value("token_loss.teacher.loss") for r in found}) == 1
    assert {(r.teacher, r.student, r.data) for r in found} == {
        ("llama 1 x 16", "llama 1 x 16", "persuasion (32 samples)")
    }
    assert "KL to teacher" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"criterion": "token_loss.los"}, "Did you mean 'token_loss.loss'"),
        ({"criterion": "repetition.length.mean"}, "no direction of 'repetition.length.mean' is better"),
        ({"columns": ["token_loss.los"]}, "Did you mean 'token_loss.loss'"),
    ],
)
def test_mistaken_terms_are_explained(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        _ = suite(**changes).terms


def test_a_criterion_that_no_arm_takes_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match=r"arm 'sft': .*add text_overlap to `evaluate`"):
        suite(criterion="text_overlap.exact_match").recipes()


def test_what_is_prepared_may_name_only_what_stands_before_it() -> None:
    backwards = {name: SUITE["prepare"][name] for name in ("aligned", "teacher")}
    with pytest.raises(RecipeError, match="teacher' names nothing that this comparison prepares before it"):
        suite(prepare=backwards).preparations()


def test_a_method_that_was_only_run_beside_another_is_explained_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [replace(row("gold", s, 1.9), method="gold + sft") for s in range(3)]
    monkeypatch.setattr(explanation, "shipped_results", lambda: {"novel": [*rows(), *both]})
    monkeypatch.setattr(explanation, "shipped_terms", lambda suite: LOSS)
    assert [s.arm for s in explanation.explain("gold").measured[0].summaries] == ["word_kd", "gold", "sft"]
    assert [s.arm for s in explanation.explain("uld").measured[0].summaries] == ["word_kd", "sft", "uld"]


def test_nothing_is_recommended_for_text() -> None:
    with pytest.raises(RecipeError, match="'persuasion' is text"):
        recommend(Wish("resnet20", "resnet8", "persuasion"))
