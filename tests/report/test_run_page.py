"""Pages about run folders, whole ones and ones with holes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import as_source
from limbeck.errors import DataError, RunFolderError
from limbeck.report.arms import arms_of
from limbeck.report.disagreement import disagreements
from limbeck.report.held_out import by_data
from limbeck.report.pictures import as_pixels, images_of, judged_on
from limbeck.report.run_page import report_runs
from limbeck.report.runs import read_run
from limbeck.report.sections import Text
from tests.report.conftest import CLASSES, MakeRun
from tests.report.pages import HOSTILE, read_page

FULL = {
    "Results",
    "Cost",
    "How good for what cost",
    "Training",
    "Calibration and classes",
    "Against alone",
    "Where student and teacher disagree",
}
REMARKS = "What is not in this report"


def titles(path: Path) -> set[str]:
    page = read_page(path.read_text())
    return {link["href"][1:] for link in page.all("a")}


def slugs(names: set[str]) -> set[str]:
    return {name.lower().replace(" ", "-") for name in names}


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    return [make_run("none", strength=1.0), make_run("kd", 0), make_run("kd", 1)]


def test_a_page_about_whole_runs_has_everything(runs: list[Path], tmp_path: Path) -> None:
    path = report_runs(runs, tmp_path / "new folder" / "report.html", extra=[Text("More", ("said",))])
    assert titles(path) == slugs(FULL | {"More"})
    page = read_page(path.read_text())
    assert "resnet20 distilled into resnet8" in page.text
    assert "3 runs on fashion-mnist-small with 2 seeds, judged on the test data." in page.text
    assert "Measured on a processor, 2 threads." in page.text
    assert "Recipe of kd" in page.text
    assert len(page.all("img")) >= 3
    assert all("in truth class" in image["alt"] and "teacher says" in image["alt"] for image in page.all("img"))
    assert str(tmp_path) not in page.text


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("metrics.jsonl", {"Training"}, "The course of training"),
        ("predictions.safetensors", {"Against alone", "Where student and teacher disagree"}, "The predictions"),
        ("recipe.yaml", {"Where student and teacher disagree"}, "The recipe"),
        ("environment.json", set(), "The machine"),
        ("student.json", set(), "The student's card"),
        ("results.json", FULL - {"Training"}, "The results"),
    ],
)
@pytest.mark.parametrize("damage", ["absent", "damaged"])
def test_what_is_absent_or_damaged_is_left_out_and_told(
    runs: list[Path], tmp_path: Path, name: str, lost: set[str], said: str, damage: str
) -> None:
    for folder in runs[:2]:
        (folder / name).unlink() if damage == "absent" else (folder / name).write_bytes(b"\xff{ not: what, it was")
    path = report_runs(runs[:2], tmp_path / "report.html")
    assert titles(path) == slugs((FULL - lost) | {REMARKS})
    text = read_page(path.read_text()).text
    assert said in text
    assert name in text


def test_one_run_without_teacher_makes_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    path = report_runs([make_run("none", teacher=False)], tmp_path / "report.html")
    text = read_page(path.read_text()).text
    assert "No distilled student is in this report. The student alone reaches" in text
    assert "Pictures of disagreements: no run tells of a teacher and a student." in text


def test_data_that_are_not_here_show_no_pictures(make_run: MakeRun, tmp_path: Path) -> None:
    elsewhere = [make_run("dkd", data={"name": "no-such-data"})]
    assert "no-such-data" in read_page(report_runs(elsewhere, tmp_path / "r.html").read_text()).text


def test_runs_judged_on_different_data_are_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [
        make_run("none"),
        make_run("kd", strength=2.0),
        make_run("dkd", strength=2.5, data={"name": "digits"}),
        make_run("dist", strength=2.2, data={"name": "digits"}),
    ]
    page = read_page(report_runs(folders, tmp_path / "r.html").read_text())
    assert "These runs were judged on different data" in page.text
    tables = {title: rows for title, rows in _tables(folders, tmp_path).items() if title.startswith("Results")}
    assert list(tables) == ["Results: fashion-mnist-small, test data", "Results: digits, test data"]
    marked = [{row for row, best in rows.items() if best} for rows in tables.values()]
    assert marked == [{"KD"}, {"DKD"}]
    assert all(any(row.startswith("teacher") for row in rows) for rows in tables.values())


def test_less_training_data_does_not_change_what_is_judged(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("none"), make_run("kd", data={"limit": 77}), make_run("dkd", data={"limit": {"train": 5}})]
    assert len(by_data([read_run(folder) for folder in folders])) == 1
    other = make_run("kd", data={"limit": {"test": 5}}, suffix="-few")
    assert len(by_data([read_run(folder) for folder in (*folders, other)])) == 2


def _tables(folders: list[Path], tmp_path: Path) -> dict[str, dict[str, bool]]:
    """Whether accuracy is marked as the best, by heading of the table and name of the row."""
    html = report_runs(folders, tmp_path / "tables.html").read_text()
    found: dict[str, dict[str, bool]] = {}
    for part in re.findall(r'<section class="table".*?</section>', html, re.DOTALL):
        title = re.search(r"<h2.*?>(.*?)</h2>", part, re.DOTALL)
        assert title is not None
        rows = re.findall(r'<th scope="row">(?:<span.*?</span>)?(.*?)</th>\s*<td class="(.*?)"', part, re.DOTALL)
        found[title[1].strip()] = {name.strip(): "best" in classes for name, classes in rows}
    return found


def test_a_hostile_run_folder_runs_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("kd", class_names=[HOSTILE] * CLASSES)
    for name in ("results.json", "recipe.yaml", "environment.json"):
        text = (folder / name).read_text()
        values = json.loads(text) if name.endswith("json") else None
        if name == "results.json":
            values |= {"method": HOSTILE, "split": HOSTILE}
        elif name == "environment.json":
            values["processor"] = HOSTILE
        (folder / name).write_text(json.dumps(values) if values else text.replace("resnet8", json.dumps(HOSTILE)))
    page = read_page(report_runs([folder], tmp_path / "report.html").read_text())
    assert not any("alert" in script for script in page.scripts)
    assert "<script>alert('x')</script>" in page.text


def test_a_recipe_that_names_python_objects_is_only_damaged(make_run: MakeRun, tmp_path: Path) -> None:
    folder, mark = make_run("kd"), tmp_path / "executed"
    (folder / "recipe.yaml").write_text(
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]"
    )
    page = read_page(report_runs([folder], tmp_path / "report.html").read_text())
    assert "recipe.yaml" in page.text
    assert not mark.exists()


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="at least one"):
        report_runs([], tmp_path / "report.html")
    with pytest.raises(RunFolderError, match="no run folder"):
        report_runs([tmp_path / "absent"], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="holds none of"):
        report_runs([tmp_path / "empty"], tmp_path / "report.html")


def test_a_page_that_cannot_be_written_is_an_error_with_its_cause(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        report_runs(runs, tmp_path / "file" / "report.html")


def test_pictures_are_those_of_the_samples(make_run: MakeRun, labels: torch.Tensor) -> None:
    arms = arms_of([read_run(make_run("kd"))])
    teacher, student = arms[0], arms[1]
    source = judged_on(read_run(make_run("dkd")))
    grid = disagreements(student, teacher, images_of(source), ["a", "b"], each=4)
    assert grid is not None
    predictions = student.predictions
    assert predictions is not None
    ours, theirs = (predictions.logits[role].softmax(1) for role in ("student", "teacher"))
    differing = int((ours.argmax(1) != theirs.argmax(1)).sum())
    assert f"for {differing} of {len(labels)} samples" in grid.text
    for group in grid.groups:
        assert 0 < len(group.pictures) <= 4
        for picture in group.pictures:
            number = int(picture.name.removeprefix("Sample "))
            who, says = picture.guesses[0], picture.guesses[1]
            assert who.probability == pytest.approx(float(theirs[number].max()))
            assert says.probability == pytest.approx(float(ours[number].max()))
            assert who.right == (int(theirs[number].argmax()) == int(labels[number]))
            assert who.says != says.says
            drawn = np.asarray(Image.open(io.BytesIO(picture.png)))
            np.testing.assert_array_equal(drawn, source.fetch(np.asarray([number]), 0)["inputs"][0, 0].numpy())
    rights = [{(p.guesses[0].right, p.guesses[1].right) for p in g.pictures} for g in grid.groups]
    assert rights[0] == {(True, False)}


def test_floating_point_images_are_stretched_and_vectors_are_no_images() -> None:
    inputs = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 2, 2).repeat(4, 1, 1, 1)
    source = as_source((inputs, torch.tensor([0, 1, 0, 1])))
    assert as_pixels(source, np.asarray([0])).flatten().tolist() == [0, 64, 128, 255]
    unit = as_source((torch.tensor([0.0, 0.2, 0.4, 0.6]).reshape(1, 1, 2, 2), torch.tensor([0])))
    assert as_pixels(unit, np.asarray([0])).flatten().tolist() == [0, 51, 102, 153]
    vectors = as_source((torch.rand(4, 3), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(DataError, match="no images"):
        images_of(vectors)
