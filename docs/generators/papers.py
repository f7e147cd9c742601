"""Every publication that a method or a model comes from, with its BibTeX entry."""

from __future__ import annotations

from limbeck.methods.base import methods
from limbeck.report.explanation import bibtex, paper_link
from limbeck.students.base import models
from limbeck.transforms import transforms

from .markup import code


def papers() -> str:
    """Returns the publications of methods, models and transforms, newest last, each once."""
    found: dict[str, tuple[int, str, str]] = {}
    for kind, registry in (("method", methods), ("model", models), ("transform", transforms)):
        for entry in registry.entries():
            about = {"year": 0, **entry.about}
            if not about.get("paper") or about["paper"] in found:
                continue
            line = f"- {kind} `{entry.name}`: [{about['title']}]({paper_link(about['paper'])})" + (
                f", {about['year']}" if about["year"] else ""
            )
            found[about["paper"]] = (about["year"], line, bibtex(entry.name, about) if about["year"] else "")
    ordered = sorted(found.values())
    listed = "\n".join(line for _, line, _ in ordered)
    entries = "\n\n".join(entry for *_, entry in ordered if entry)
    return f"{listed}\n\n## BibTeX\n\n{code(entries, 'bibtex')}"
