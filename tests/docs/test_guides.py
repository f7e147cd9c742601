"""The guides do what they say: their files, their Python and their commands are run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck
from distributed.launch import torchrun
from docs.blocks import blocks, commands, run_page
from limbeck.functional import divergence_registry
from limbeck.methods.base import methods

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


@pytest.mark.parametrize(
    "name",
    [
        "first_run",
        "own_model",
        "teacher_cache",
        "resume",
        "measuring",
        "choosing",
        "language_models",
        "language_students",
    ],
)
def test_a_guide_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert run_page(GUIDES / f"{name}.md", tmp_path) >= 3


def test_the_guide_to_an_own_divergence_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(divergence_registry, "_DIVERGENCES", dict(divergence_registry._DIVERGENCES))
    assert run_page(GUIDES / "own_divergence.md", tmp_path) == 5
    assert "hellinger" in divergence_registry.divergence_names()


@pytest.mark.distributed
def test_the_guide_to_several_processes_says_what_runs(tmp_path: Path) -> None:
    page = list(blocks(GUIDES / "distributed.md"))
    recipe = next(block for block in page if block.title is not None)
    (tmp_path / str(recipe.title)).write_text(recipe.text)
    lines = [line for block in page if block.language == "console" for line in block.text.splitlines()]
    said = next(block.text.strip() for block in page if block.language == "text")
    program, _, number, *arguments = shlex.split(lines[0].removeprefix("$ "))
    assert (program, number) == ("torchrun", "2")
    done = torchrun(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert said in done.stderr
    assert list((tmp_path / "runs").glob("shared-*/results.json"))


def test_the_guide_to_an_own_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = list(methods)
    monkeypatch.setattr(methods, "_entries", dict(methods._entries))
    assert run_page(GUIDES / "own_method.md", tmp_path) >= 8
    assert set(methods) - set(known) == {"logit_matching", "pooled_regression"}


def test_a_method_file_dropped_into_the_package_is_found_by_the_command(tmp_path: Path) -> None:
    package = tmp_path / "limbeck"
    shutil.copytree(
        Path(limbeck.__file__).parent, package, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__")
    )
    page = list(blocks(GUIDES / "own_method.md"))
    files = {block.title: block.text for block in page if block.title is not None}
    (package / "methods" / "logit" / "logit_matching.py").write_text(files["logit_matching.py"])
    (tmp_path / "matching.yaml").write_text(files["matching.yaml"])
    called = [arguments for block in page if block.language == "console" for arguments in commands(block)]
    assert ["explain", "logit_matching"] in called
    # One process, as starting each takes longer than what it does.
    program = f"from docs.blocks import call\nfor arguments in {called!r}: call(arguments)"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Do Deep Nets Really Need to be Deep?" in ended.stdout
    assert list((tmp_path / "runs").glob("matching-*/results.json"))
