"""The adapters' guide does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.blocks import run_page

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "adapters.md"


def test_every_snippet_of_the_guide_trains_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(GUIDE, tmp_path) == 6
