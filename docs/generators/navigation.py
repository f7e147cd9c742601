"""The navigation: pages by hand in reading order, methods by family, whatever guides there are."""

from __future__ import annotations

import re
from pathlib import Path

from . import api
from .methods import families, family_title

# Guides in reading order; any other comes after them, by name.
_FIRST_GUIDES = (
    "first_run",
    "own_method",
    "own_divergence",
    "own_model",
    "teacher_cache",
    "resume",
    "measuring",
    "choosing",
    "distributed",
    "adapters",
    "performance",
)


def summary(out: Path) -> str:
    """Returns ``SUMMARY.md`` for the pages that lie in ``out``."""
    lines = [_entry("Home", "index.md")]
    lines += ["- Guides", *(_entry(_title(out / page), page, 1) for page in _guides(out))]
    lines += ["- Methods", _entry("All methods", "methods/index.md", 1)]
    for family, names in families().items():
        lines.append(f"    - {family_title(family)}")
        lines += [_entry(name, f"methods/{name}.md", 2) for name in names]
    lines.append("- Reference")
    for title, page in (
        ("Recipes", "recipes.md"),
        ("The command", "command.md"),
        ("Models", "models.md"),
        ("Data", "data.md"),
        ("Evaluations", "evaluations.md"),
        ("Comparisons", "comparisons.md"),
        ("Papers", "papers.md"),
    ):
        lines.append(_entry(title, page, 1))
    lines += ["- Python", *(_entry(title, f"api/{page}.md", 1) for page, (title, _) in api.PAGES.items())]
    lines += ["- Project", _entry("Architecture", "architecture.md", 1)]
    lines += [_entry("Contributing", "contributing.md", 1), _entry("Changes", "changelog.md", 1)]
    return "\n".join(lines) + "\n"


def _guides(out: Path) -> list[str]:
    names = [path.stem for path in sorted((out / "guides").glob("*.md"))]
    ordered = [n for n in _FIRST_GUIDES if n in names] + [n for n in names if n not in _FIRST_GUIDES]
    return [f"guides/{name}.md" for name in ordered]


def _title(page: Path) -> str:
    found = re.search(r"^# (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return found[1].strip() if found else page.stem


def _entry(title: str, page: str, depth: int = 0) -> str:
    return f"{'    ' * depth}- [{title}]({page})"
