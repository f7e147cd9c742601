"""What the README, the changelog and the citation say is so."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from torch import nn

import limbeck
from docs.blocks import blocks
from limbeck.recipes.load import load_recipe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def closure(names: Iterable[str]) -> set[str]:
    """The distributions that an installation of ``names`` brings, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name.lower().replace("_", "-"))
    return found


def megabytes(name: str) -> float:
    files = importlib.metadata.files(name) or ()
    sizes = [
        Path(str(f.locate())).stat().st_size for f in files if f.suffix != ".pyc" and Path(str(f.locate())).is_file()
    ]
    return sum(sizes) / 1e6


def test_the_size_of_the_installation_is_told() -> None:
    core = closure(["limbeck"]) - {"limbeck"} - closure(["torch"])
    said = re.search(
        r"that is (\d+) packages and (\d+) MB, (\d+) of them NumPy", " ".join(README.read_text("utf-8").split())
    )
    assert said is not None
    assert len(core) == int(said[1])
    assert sum(map(megabytes, core)) == pytest.approx(int(said[2]), rel=0.1)
    assert megabytes("numpy") == pytest.approx(int(said[3]), rel=0.1)


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    data = torch.randn(64, 8), torch.randint(0, 3, (64,))
    namespace = {
        "teacher": nn.Linear(8, 3),
        "student": nn.Linear(8, 3),
        "train_set": data,
        "test_set": data,
        "student_logits": torch.randn(4, 3),
        "teacher_logits": torch.randn(4, 3),
    }
    for block in blocks(README):
        if block.language == "python":
            exec(block.text, namespace)
    assert "top1" in capsys.readouterr().out
    assert torch.isfinite(namespace["loss"])


def test_the_recipe_of_the_readme_is_one() -> None:
    texts = [block.text for block in blocks(README) if block.language == "yaml"]
    assert [load_recipe(yaml.safe_load(text)).stages[0].method["name"] for text in texts] == ["dkd"]


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for page in (README, ROOT / "CONTRIBUTING.md"):
        for address in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            assert "://" in address or (ROOT / address).is_file(), address


def test_changelog_and_citation_are_of_this_version() -> None:
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == limbeck.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == limbeck.__version__
