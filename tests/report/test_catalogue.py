"""What the command says of methods, models, data sets and recipes comes from the registries."""

from __future__ import annotations

import pytest

from limbeck.bench.table import Row
from limbeck.cli import main
from limbeck.data.source import datasets
from limbeck.errors import UnknownNameError
from limbeck.methods.base import methods
from limbeck.recipes.load import shipped
from limbeck.report import explanation
from limbeck.report.catalogue import show_data, show_method, show_methods, show_models, show_recipes
from limbeck.report.explanation import bibtex, explain
from limbeck.report.wording import describe_default, describe_type, describe_weight
from limbeck.report.zoo import model_facts
from limbeck.schedules import During, Warmup
from limbeck.students.base import models


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def row(arm: str, seed: int, accuracy: float) -> Row:
    return Row(
        suite="pair",
        data="digits",
        teacher="resnet20",
        student="resnet8",
        arm=arm,
        method=arm.split(" ")[0],
        seed=seed,
        epochs=3,
        split="test",
        accuracy=accuracy,
        agreement=0.8,
        ece=0.0123,
        nll=0.4,
        teacher_accuracy=0.95,
        seconds=12.0,
        processor="cpu",
    )


def test_lists_name_everything_registered(capsys: pytest.CaptureFixture[str]) -> None:
    for show, names in (
        (show_methods, methods),
        (show_models, models),
        (show_data, datasets),
        (show_recipes, shipped()),
    ):
        show()
        said = capsys.readouterr().out
        assert [name for name in names if name not in said] == []


def test_methods_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    show_methods("relation")
    said = capsys.readouterr().out
    assert "rkd" in said
    assert "dkd" not in said
    with pytest.raises(UnknownNameError, match="Did you mean 'logit'"):
        show_methods("logits")


@pytest.mark.parametrize("name", list(methods))
def test_every_method_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_method(name)
    said, method = capsys.readouterr().out, explain(name)
    for expected in (
        method.title,
        method.link,
        *(t.name for t in method.terms),
        *(h.name for h in method.hyperparameters),
    ):
        assert expected in said
    assert ":class:" not in said
    assert "``" not in said


def test_an_unknown_method_is_refused_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["explain", "dkk"])
    assert end.value.code == 2
    assert "Did you mean" in capsys.readouterr().err


def test_needs_follow_the_defaults_of_hyperparameters() -> None:
    roles = {need.role: need for need in explain("crd").roles}
    assert roles["student"].trained
    assert not roles["teacher"].trained
    assert "features.pooled" in roles["teacher"].signals
    assert explain("crd").batch_coupled
    assert [need.trained for need in explain("dml").roles] == [True, True]


@pytest.mark.parametrize("name", ["mcmi", "focal"])
def test_a_method_that_prepares_a_teacher_is_measured_by_what_the_student_reaches(name: str) -> None:
    measured = explain(name).measured
    assert measured
    for comparison in measured:
        assert {"none", "kd"} < {arm.arm for arm in comparison.summaries} | {name}


def test_measured_results_stand_beside_the_reference_arms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row(a, s, v + s / 100)
        for a, v in (("none", 0.80), ("kd", 0.83), ("dkd", 0.79), ("rkd", 0.9))
        for s in (0, 1, 2)
    ]
    monkeypatch.setattr(explanation, "shipped_results", lambda: {"pair": rows})
    measured = explain("dkd").measured
    assert [[arm.arm for arm in m.summaries] for m in measured] == [["kd", "none", "dkd"]]
    assert measured[0].summaries[2].gain == pytest.approx(-0.01)
    show_method("dkd")
    said = capsys.readouterr().out
    assert "80.00 ± 1.00 %" in said
    assert "-1.00" in said
    assert "no measured result yet" not in said
    show_method("sp")
    assert "no measured result yet" in capsys.readouterr().out


def test_models_are_listed_with_the_costs_of_a_real_one() -> None:
    from limbeck.students.cost import cost_of
    from limbeck.students.loading import build_model

    fact = next(f for f in model_facts() if f.name == "resnet8")
    assert fact.cost == cost_of(build_model("resnet8", num_classes=10, input_shape=(3, 32, 32)), (3, 32, 32))


def test_a_citation_needs_a_publication() -> None:
    assert bibtex("none", methods["none"].about) == ""
    assert "eprint = {2203.08679}" in bibtex("dkd", methods["dkd"].about)
    assert "archiveprefix" not in bibtex("mlkd", methods["mlkd"].about)


def test_values_in_words() -> None:
    assert describe_type(dict[str, tuple[int, ...]] | None) == "mapping to list of whole numbers, or null"
    assert describe_type(str | dict[str, int]) == "text, or mapping to whole number"
    assert describe_default(True) == "true"
    assert describe_default({"a": (1.5, 2.0)}) == "{a: [1.5, 2]}"
    assert describe_weight(Warmup(2.0, 5)) == "2, growing linearly over the first 5 epochs"
    assert describe_weight(During(1.0, start=0.5)) == "0 during the first 50 % of the stage, then 1"
    assert describe_weight(During(1.0, start=0.25, stop=0.5)) == "1 from 25 % to 50 % of the stage, otherwise 0"
