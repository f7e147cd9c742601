"""Comparisons: equal terms, arms that are always there, resumption, and tables that claim no more than they know."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from limbeck.bench.page import findings
from limbeck.bench.run import run_folder, run_suite
from limbeck.bench.suite import arm_of, load_suite, shipped
from limbeck.bench.table import Row, read_csv, shipped_results, summarise, write_csv
from limbeck.cli import app
from limbeck.errors import LimbeckError, RecipeError, UnknownNameError
from limbeck.recipes.load import as_plain

SUITE: dict[str, Any] = {
    "about": "a comparison in seconds",
    "recipe": {
        "data": {"name": "fashion-mnist-small", "limit": {"train": 64, "test": 32}},
        "roles": {"teacher": {"model": "small_cnn"}, "student": {"model": "small_cnn"}},
        "train": {"epochs": 1, "batch_size": 32},
        "evaluate": ["accuracy", "agreement", "calibration"],
    },
    "seeds": [0, 1],
    "arms": {"softer": {"method": {"name": "kd", "temperature": 8.0}}, "dkd": {}},
}


def written(folder: Path, suite: dict[str, Any]) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(suite))
    return str(path)


def row(arm: str, seed: int, accuracy: float) -> Row:
    return Row("s", "d", "t", "u", arm, arm, seed, 1, "test", accuracy, 0.5, 0.1, 1.0, 0.9, math.nan, "cpu")


def test_arms_differ_in_their_method_only(tmp_path: Path) -> None:
    _, suite = load_suite(written(tmp_path, SUITE))
    recipes = suite.recipes()
    assert {arm for arm, _ in recipes} == {"none", "label_smoothing", "kd", "softer", "dkd"}
    plain = [as_plain(recipe) for (_, seed), recipe in recipes.items() if seed == 1]
    for recipe in plain:
        recipe["stages"][0].pop("method")
    assert all(recipe == plain[0] for recipe in plain)


def test_suite_runs_and_continues_with_what_is_missing(tmp_path: Path) -> None:
    where, out = written(tmp_path, SUITE), tmp_path / "out"
    page = run_suite(where, out=out, workers=1)
    assert "softer" in page.read_text()
    rows = read_csv(out / "results.csv")
    assert len(rows) == 10
    assert {r.method for r in rows} == {"none", "label_smoothing", "kd", "dkd"}
    kept = run_folder(out, "kd", 0) / "results.json"
    stamp = kept.stat().st_mtime_ns
    (run_folder(out, "dkd", 1) / "results.json").unlink()
    run_suite(where, out=out, workers=1)
    assert kept.stat().st_mtime_ns == stamp
    # An interrupted run has no duration, everything else is as before.
    assert [r.accuracy for r in read_csv(out / "results.csv")] == [r.accuracy for r in rows]


def test_one_arm_runs_alone_and_the_table_shows_what_has_finished(tmp_path: Path) -> None:
    where, out = written(tmp_path, {**SUITE, "seeds": [0]}), tmp_path / "out"
    page = run_suite(where, out=out, arms=["dkd"], workers=1).read_text()
    assert [r.arm for r in read_csv(out / "results.csv")] == ["dkd"]
    assert "limbeck bench tiny --arm" in page
    run_suite(where, out=out, arms=["none"], workers=1)
    assert {r.arm for r in read_csv(out / "results.csv")} == {"none", "dkd"}
    with pytest.raises(UnknownNameError, match=r"no arm 'dk'.*'dkd'"):
        run_suite(where, out=out, arms=["dk"], workers=1)


def test_the_command_lists_what_is_shipped() -> None:
    said = CliRunner().invoke(app, ["bench"])
    assert said.exit_code == 0
    assert "fashion_mnist_resnet" in said.output


def test_arm_that_cannot_run_does_not_stop_the_others(tmp_path: Path) -> None:
    arms = {"fsp": {"roles": {"teacher": {"model": "resnet8"}, "student": {"model": "small_cnn"}}}}
    where = written(tmp_path, {**SUITE, "seeds": [0], "arms": arms})
    with pytest.raises(LimbeckError, match=r"1 of 4 runs failed \(fsp-seed0"):
        run_suite(where, out=tmp_path / "out", workers=1)
    assert len(read_csv(tmp_path / "out" / "results.csv")) == 3


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10_vit'"):
        load_suite("cifar10_vitt")
    with pytest.raises(RecipeError, match="Did you mean 'seeds'"):
        load_suite(written(tmp_path, {**SUITE, "sedes": [1]}))
    _, suite = load_suite(written(tmp_path, {**SUITE, "arms": {"x": {"trian": {"lr": 1}}}}))
    with pytest.raises(RecipeError, match=r"arm 'x'.*'trian'"):
        suite.recipes()


@pytest.mark.parametrize("name", shipped())
def test_shipped_suite_is_a_suite(name: str) -> None:
    assert len(load_suite(name)[1].recipes()) >= 12


@pytest.mark.parametrize("name", shipped_results())
def test_shipped_results_have_all_arms_and_three_seeds(name: str) -> None:
    summaries = summarise(shipped_results()[name])
    arms = {arm_of(label)[0] for label, _ in load_suite(name)[1].recipes()}
    assert {s.arm for s in summaries} == arms
    assert all(s.seeds >= 3 for s in summaries)


def test_gains_are_taken_seed_by_seed() -> None:
    rows = [row("none", 0, 0.5), row("none", 1, 0.7), row("kd", 0, 0.6), row("kd", 1, 0.8), row("at", 1, 0.6)]
    by_arm = {s.arm: s for s in summarise(rows)}
    assert by_arm["kd"].gain == pytest.approx(0.1)
    assert by_arm["kd"].spread == pytest.approx(0.1 * math.sqrt(2))
    assert by_arm["at"].gain == pytest.approx(-0.1)
    assert by_arm["at"].gain_over_plain == pytest.approx(-0.2)


def test_findings_name_only_what_the_seeds_can_tell() -> None:
    rows = [row("none", s, 0.5 + 0.01 * s) for s in range(3)] + [row("kd", s, 0.7 + 0.01 * s) for s in range(3)]
    rows += [row("at", s, 0.5 + 0.02 * s) for s in range(3)] + [row("sp", s, 0.2 + 0.01 * s) for s in range(3)]
    said = findings(summarise(rows))
    assert "kd is better and sp is worse" in said[1]
    assert "no arm is better" in said[2]


def test_one_seed_tells_nothing_of_differences() -> None:
    said = findings(summarise([row("none", 0, 0.5), row("kd", 0, 0.7), row("at", 0, 0.3)]))
    assert said == ["Best accuracy: kd, 70.00 %. One seed does not tell how much of a difference is chance."]
    several = [row("none", s, 0.5) for s in range(2)] + [row("kd", 0, 0.7)]
    assert not any("kd is better" in line for line in findings(summarise(several)))


def test_table_survives_the_file(tmp_path: Path) -> None:
    rows = [row("none", 0, 0.5), row("kd + standardize", 1, 0.25)]
    write_csv(rows, tmp_path / "t.csv")
    assert [r.accuracy for r in read_csv(tmp_path / "t.csv")] == [0.5, 0.25]
    assert math.isnan(read_csv(tmp_path / "t.csv")[0].seconds)
