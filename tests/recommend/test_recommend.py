"""Recommendations: what evidence says, how close it is, which recipes come of it, what is not covered."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from limbeck.bench.table import Row, shipped_results, write_csv
from limbeck.errors import NeedsError, RecipeError
from limbeck.recipes.load import load_recipe
from limbeck.recommend import Wish, evidence_for, recommend
from limbeck.recommend.evidence import closeness, family

WISH = Wish("resnet20", "resnet8", "fashion-mnist-small", samples=2000, epochs=12)


def row(arm: str, seed: int, accuracy: float, **changes: object) -> Row:
    facts = {
        "suite": "mine", "data": "fashion-mnist-small (2000 samples)", "teacher": "resnet20", "student": "resnet8",
        "arm": arm, "method": arm, "seed": seed, "epochs": 12, "split": "test", "accuracy": accuracy,
        "agreement": 0.8, "ece": 0.02, "nll": 0.5, "teacher_accuracy": 0.9, "seconds": 10.0, "processor": "one",
    }  # fmt: skip
    return Row(**{**facts, **changes})  # type: ignore[arg-type]


def table(arms: dict[str, list[float]], **changes: object) -> list[Row]:
    return [row(arm, seed, a, **changes) for arm, values in arms.items() for seed, a in enumerate(values)]


def test_evidence_is_paired_by_seed_with_its_standard_error() -> None:
    rows = table({"none": [0.70, 0.72, 0.74], "kd": [0.75, 0.76, 0.77], "at": [0.76, 0.79, 0.80]})
    found = {e.arm: e for e in evidence_for(WISH, rows)}
    at = found["at"].comparisons[0]
    assert at.gain == pytest.approx((0.01 + 0.03 + 0.03) / 3)
    assert at.error == pytest.approx(math.sqrt(4 / 3 * 1e-4) / math.sqrt(3), rel=1e-6)
    assert at.gain_over_none == pytest.approx((0.06 + 0.07 + 0.06) / 3)
    assert (at.seeds, at.closeness) == (3, 1.0)
    assert found["kd"].score == 0


def test_a_certain_small_gain_is_ranked_above_a_lucky_large_one() -> None:
    rows = table({"kd": [0.75] * 3, "at": [0.76, 0.76, 0.76], "sp": [0.85, 0.70, 0.76]})
    ranked = [e.arm for e in evidence_for(WISH, rows)]
    assert ranked == ["at", "kd", "sp"]


def test_arms_that_were_never_run_beside_kd_say_nothing() -> None:
    rows = [*table({"none": [0.7], "at": [0.8]}), row("kd", 5, 0.7)]
    assert [e.arm for e in evidence_for(WISH, rows)] == ["kd"]


def test_closer_comparisons_count_more() -> None:
    near = table({"kd": [0.7, 0.7], "at": [0.72, 0.72], "sp": [0.71, 0.71]})
    far = table(
        {"kd": [0.5, 0.5], "at": [0.5, 0.5], "sp": [0.55, 0.55]},
        suite="far", data="npz", teacher="vgg8", student="vit_micro", epochs=200,
    )  # fmt: skip
    assert next(e.arm for e in evidence_for(WISH, near + far)) == "at"
    other = Wish("vgg8", "vit_micro", "npz", epochs=200)
    ranked = evidence_for(other, near + far)
    assert ranked[0].arm == "sp"
    assert ranked[0].comparisons[0].suite == "far"


def test_closeness_is_judged_by_data_pair_and_budget() -> None:
    base = row("kd", 0, 0.7)
    assert closeness(WISH, base) == 1
    assert closeness(Wish("resnet20", "resnet8", "fashion-mnist", 2000, 12), base) == pytest.approx(0.9)
    assert closeness(Wish("resnet56", "resnet20", "fashion-mnist-small", 2000, 12), base) == pytest.approx(0.9)
    assert closeness(Wish("vgg13", "vgg8", "fashion-mnist-small", 2000, 12), base) == pytest.approx(0.5)
    assert closeness(Wish("vgg13", "vit_micro", "fashion-mnist-small", 2000, 12), base) == pytest.approx(0.25)
    assert closeness(Wish("resnet20", "resnet8", "fashion-mnist-small", 2000, 192), base) == pytest.approx(0.5)
    assert family("resnet8x4") == family("resnet20") != family("wrn_16_2")


def test_three_recipes_of_different_kinds_are_written_with_their_evidence(tmp_path: Path) -> None:
    tried: list[dict[str, object]] = []
    found = recommend(WISH, out=tmp_path, usable=tried.append)
    assert [p.path.name[0] for p in found.proposals if p.path] == ["1", "2", "3"]
    arms = [p.name for p in found.proposals]
    assert len(set(arms)) == 3
    assert "kd" in arms
    for proposal in found.proposals:
        assert proposal.path is not None
        recipe = load_recipe(proposal.path)
        last = recipe.stages[-1]
        assert last.data.name == "fashion-mnist-small"
        assert last.data.limit == 2000
        assert sum(s.train.epochs for s in recipe.stages) == 12
        assert last.roles["student"].model == "resnet8"
        assert proposal.reasons[0] in proposal.path.read_text()
    written = yaml.safe_load((tmp_path / "evidence.yaml").read_text())
    assert written["not_covered"] == list(found.gaps)
    assert len(written["proposals"]) == 3
    assert any("seeds" in gap for gap in found.gaps)
    assert not any("No comparison" in gap for gap in found.gaps)


def test_other_models_and_data_take_the_place_of_the_recorded_ones() -> None:
    wish = Wish("resnet56", "vit_micro", "cifar100", epochs=30)
    found = recommend(wish, teacher_weights="teacher.safetensors", usable=lambda recipe: None)
    for proposal in found.proposals:
        stage = proposal.recipe["stages"][-1]
        assert stage["data"] == {"name": "cifar100"} | {k: v for k, v in stage["data"].items() if k != "name"}
        assert "limit" not in stage["data"]
        for name, role in stage["roles"].items():
            if name == "teacher" and "model" in role:
                assert (role["model"], role["weights"]) == ("resnet56", "teacher.safetensors")
            elif "model" in role:
                assert role["model"] == "vit_micro"
    said = " ".join(found.gaps)
    assert "No comparison was made on cifar100" in said
    assert "No comparison was made of resnet56 and vit_micro" in said


@pytest.mark.parametrize(
    "wish",
    [
        Wish("resnet20", "resnet8", "fashion-mnist-small", samples=200, epochs=1),
        Wish("resnet20", "mlp", "digits"),
        Wish("clst", "kd_cnn", "radio"),
    ],
)
def test_comparisons_that_ask_another_question_say_nothing(wish: Wish) -> None:
    found = recommend(wish, teacher_weights="teacher.safetensors", usable=lambda recipe: None)
    suites = {c.suite for p in found.proposals for c in p.evidence.comparisons}
    assert suites.isdisjoint({"fashion_mnist_active", "fashion_mnist_few_labels", "breast_cancer_kd_oct"})
    for proposal in found.proposals:
        recipe = load_recipe(proposal.recipe)
        assert recipe.active is None
        assert {stage.data.labelled for stage in recipe.stages} == {None}
        teacher = recipe.stages[-1].roles.get("teacher")
        assert teacher is None or teacher.model in (wish.teacher, None)
    assert not any("%" in p.name for p in found.proposals)


def test_data_that_a_method_holds_out_are_held_out_in_its_proposal() -> None:
    rows = [row for table in shipped_results().values() for row in table]
    others = {e.arm for e in evidence_for(WISH, rows)} - {"kd_aif"}

    def refuse(recipe: dict[str, object]) -> None:
        if load_recipe(recipe).stages[-1].method_name != "kd_aif":
            raise NeedsError("another one")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.recommend.proposals._TRIED", len(others) + 1)
        found = recommend(WISH, usable=refuse)
    assert [stage.data.holdout for stage in load_recipe(found.proposals[0].recipe).stages] == [0.1]


def test_what_cannot_be_used_here_is_passed_over_with_the_reason() -> None:
    best = next(e.arm for e in evidence_for(WISH, [r for rows in shipped_results().values() for r in rows]))

    def refuse(recipe: dict[str, object]) -> None:
        if load_recipe(recipe).stages[-1].method_name == best:
            raise NeedsError("there is nothing to tap")

    found = recommend(WISH, usable=refuse)
    assert found.refused[best] == "there is nothing to tap"
    assert best not in [p.name for p in found.proposals]

    def refuse_all(recipe: dict[str, object]) -> None:
        raise NeedsError("there is nothing at all")

    with pytest.raises(RecipeError, match=r"no method of the comparisons can be used here.*nothing at all"):
        recommend(WISH, usable=refuse_all)


def test_own_results_count_and_their_methods_run_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_csv(table({"kd": [0.70] * 4, "pkt": [0.90] * 4}, data="digits", teacher="resnet14"), path)
    found = recommend(Wish("resnet14", "resnet8", "digits"), results=[path], usable=lambda recipe: None)
    assert found.proposals[0].name == "pkt"
    assert found.proposals[0].recipe["stages"][-1]["method"]["name"] == "pkt"
    assert found.proposals[0].reasons[0].startswith("mine: resnet14 to resnet8 on digits")
