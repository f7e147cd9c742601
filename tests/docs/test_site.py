"""The site is built from what there is: complete, without dead links or formulas left in source, without network."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.data.source import datasets
from limbeck.data.text.options import Options
from limbeck.data.text.source import texts
from limbeck.evaluate import evaluations
from limbeck.methods.base import methods
from limbeck.recipes.load import shipped
from limbeck.recipes.schema import DataSpec, Recipe, RoleSpec, StageSpec
from limbeck.students.base import models

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import build  # noqa: E402
from generators import markup, readme  # noqa: E402

_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "build" / "docs"
    build.write_pages(out)
    return out


@pytest.fixture(scope="module")
def site(pages: Path) -> Path:
    root = pages.parents[1]
    shutil.copyfile(ROOT / "zensical.toml", root / "zensical.toml")
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--clean", "--strict"], cwd=root, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "No issues found" in built.stdout + built.stderr
    return root / "site"


def test_every_link_leads_somewhere(pages: Path) -> None:
    dead = []
    for page in pages.rglob("*.md"):
        for address in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
            target, _, anchor = address.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.is_file() or (anchor and not _has_anchor(file, anchor)):
                dead.append(f"{page.relative_to(pages)}: {address}")
    assert dead == []


def _has_anchor(page: Path, anchor: str) -> bool:
    text = page.read_text("utf-8")
    headings = {re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    return f"{{ #{anchor} }}" in text or anchor in headings


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("methods/index.md", lambda: methods),
        ("models.md", lambda: models),
        ("data.md", lambda: datasets),
        ("data.md", lambda: texts),
        ("data.md", lambda: [f"`{key}`" for key in inspect.signature(Options).parameters]),
        ("evaluations.md", lambda: evaluations),
        ("recipes.md", shipped),
        ("recipes.md", lambda: [key for m in (Recipe, StageSpec, RoleSpec, DataSpec) for key in m.model_fields]),
        ("papers.md", lambda: [e.about["title"] for e in methods.entries() if e.about["paper"]]),
    ],
)
def test_a_page_has_every_registered_name(pages: Path, page: str, names: Callable[[], list[str]]) -> None:
    text = (pages / page).read_text("utf-8")
    assert [name for name in names() if name not in text] == []


def test_every_method_has_a_whole_page(pages: Path) -> None:
    for name in methods:
        text = (pages / "methods" / f"{name}.md").read_text("utf-8")
        for heading in ("## Equation", "## Terms", "## Hyperparameters", "## Needs", "## Use", "## Measured"):
            assert heading in text, f"{name} has no section {heading}"
        assert "<math" in text


def test_every_page_is_in_the_navigation(pages: Path) -> None:
    summary = (pages / "SUMMARY.md").read_text("utf-8")
    written = {str(page.relative_to(pages)) for page in pages.rglob("*.md")} - {"SUMMARY.md"}
    assert {page for page in written if f"({page})" not in summary} == set()


def test_the_architecture_names_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    folders = sorted(p.parent.name for p in (ROOT / "limbeck").glob("*/__init__.py"))
    assert [f for f in folders if f"  {f}/ " not in text] == []


def test_nothing_is_left_to_insert_and_no_docstring_markup_is_left(pages: Path) -> None:
    for page in pages.rglob("*.md"):
        text = page.read_text("utf-8")
        assert "<!-- insert" not in text
        prose = _CODE.sub("", text)
        assert not re.search(r":(?:class|func|meth|mod|math):`|\.\. math::", prose), page.name
        assert not re.search(r"(?<!`)``(?!`)", prose), page.name


def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert loaded.findall(text) == [], page.name
    assert (site / "methods" / "kd.html").is_file()
    assert (site / "assets" / "iframe-worker.js").is_file()


def test_formulas_with_unknown_commands_are_refused() -> None:
    with pytest.raises(ValueError, match="nosuchcommand"):
        markup.mathml(r"a + \nosuchcommand{b}", display=True)


def test_docstring_markup_becomes_markdown() -> None:
    links = {"limbeck.functional.kl": "api/functional.md#kl"}
    said = markup.markdown("See :func:`~limbeck.functional.kl`, ``a | b`` and a_b * c.", links, base="../")
    assert said == "See [`kl`](../api/functional.md#kl), `a | b` and a\\_b \\* c."


def test_the_readme_lists_every_method() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme.with_tables(text) == text, "run `python docs/build.py --readme`"
