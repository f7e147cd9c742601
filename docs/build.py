"""Writes the pages of the documentation into ``build/docs``, from which ``zensical build`` makes the site.

Pages written by hand lie beside this file; ``<!-- insert: NAME -->`` in them stands for what is generated from the
registries, the docstrings, the schema of recipes and the shipped results. ``--readme`` brings the tables in README.md
up to date instead.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generators import api, command, comparisons, methods, papers, parts, recipes
from generators.navigation import summary
from generators.readme import home, with_tables

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OUT = ROOT / "build" / "docs"
_INSERTS = {
    "methods": methods.method_table,
    "models": parts.model_table,
    "data": parts.data_table,
    "text": parts.text_table,
    "augmentations": parts.augmentation_list,
    "transforms": parts.transform_list,
    "logit_transforms": parts.logit_transform_table,
    "tasks": parts.task_table,
    "evaluations": parts.evaluation_table,
    "schema": recipes.schema_reference,
    "recipes": recipes.shipped_recipes,
    "command": command.command_reference,
    "comparisons": comparisons.comparisons,
    "papers": papers.papers,
}
_INSERT = re.compile(r"<!-- insert: (\w+) -->")


def main() -> None:
    """Writes the pages, or the README's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="bring the tables in README.md up to date")
    if parser.parse_args().readme:
        readme = ROOT / "README.md"
        readme.write_text(with_tables(readme.read_text("utf-8")), "utf-8")
        return
    write_pages(OUT)
    print(f"wrote {sum(1 for _ in OUT.rglob('*.md'))} pages into {OUT.relative_to(ROOT)}")


def write_pages(out: Path) -> None:
    """Writes every page into ``out``, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    known = api.links()
    for source in sorted(p for p in DOCS.rglob("*") if p.suffix not in (".py", ".pyc") and p.is_file()):
        target = out / source.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(_filled(source.read_text("utf-8")), "utf-8")
        else:
            shutil.copyfile(source, target)
    generated = {
        "index.md": home((ROOT / "README.md").read_text("utf-8")),
        "contributing.md": home((ROOT / "CONTRIBUTING.md").read_text("utf-8")),
        "changelog.md": home((ROOT / "CHANGELOG.md").read_text("utf-8")),
        **{
            f"methods/{name}.md": methods.method_page(name, known)
            for names in methods.families().values()
            for name in names
        },
        **{f"api/{page}.md": api.api_page(page, known) for page in api.PAGES},
    }
    for name, text in generated.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (out / "SUMMARY.md").write_text(summary(out), "utf-8")


def _filled(text: str) -> str:
    return _INSERT.sub(lambda m: _INSERTS[m[1]](), text)


if __name__ == "__main__":
    main()
