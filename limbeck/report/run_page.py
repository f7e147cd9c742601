"""A page about runs, from what they left in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from limbeck.engine.checkpoint import disk_error, write_atomically
from limbeck.errors import LimbeckError, RunFolderError
from limbeck.report.arms import Arm, arms_of
from limbeck.report.beyond import beyond_sections
from limbeck.report.comparison import alone, best, comparison_sections
from limbeck.report.disagreement import Images, disagreements
from limbeck.report.held_out import by_data, headed, told_apart
from limbeck.report.language_sections import is_text, language_sections
from limbeck.report.page import render
from limbeck.report.pictures import images_of, judged_on
from limbeck.report.runs import RunRecord, read_run
from limbeck.report.sections import Listing, Section, Text

_LISTED_RUNS = 40


def report_runs(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    title: str = "",
    subtitle: str = "",
    extra: Sequence[Section] = (),
) -> Path:
    """Writes one page about one or several runs; runs that differ in nothing but the seed become one arm.

    Every part of the page is there if the folders hold what it shows; what they do not hold is listed at the end.

    Args:
        folders: run folders.
        out: the HTML file; its folder is made when absent.
        title: heading; made from the recipes when empty.
        subtitle: the line below it; made from the recipes when empty.
        extra: sections to show after those about the results.

    Returns:
        The file.

    Raises:
        RunFolderError: no folder is given, one is no run folder, or the page cannot be written.
        MissingExtraError: the packages of ``limbeck[report]`` are not installed.
    """
    if not folders:
        raise RunFolderError("a report needs at least one run folder")
    records = [read_run(folder) for folder in folders]
    arms = arms_of(records)
    remarks = list(dict.fromkeys(remark for record in records for remark in (*record.missing, *_notes(record))))
    if all(is_text(record.stage) for record in records):
        # Nobody keeps all logits of a text.
        remarks = [r for r in remarks if not r.startswith("the predictions")]
    groups = by_data(records)
    sections: list[Section] = [told_apart(groups)] if len(groups) > 1 else []
    for number, (label, group) in enumerate(groups.items()):
        own, reason = _judged_sections(group)
        sections += own if len(groups) == 1 else headed(own, label, number)
        where = f" on {label}" if len(groups) > 1 else ""
        remarks += [f"pictures of disagreements{where}: {reason}"] if reason else []
    sections += [*extra, *_details(records)]
    if remarks:
        sections.append(Text("What is not in this report", tuple(_sentence(remark) for remark in remarks), tone="note"))
    page = render(
        title or _title(records, arms), sections, subtitle=subtitle or _subtitle(records), footer=_machine(records)
    )
    return _written(Path(out), page)


def _notes(record: RunRecord) -> list[str]:
    """Why evaluations found nothing to say of a student that has a teacher."""
    if "teacher" not in (record.stage.get("roles") or {}):
        return []
    parts = {name: part for name, part in record.results.items() if isinstance(part, dict) and "note" in part}
    return [f"{name} of {record.method} ({record.folder.name}): {part['note']}" for name, part in parts.items()]


def _judged_sections(records: Sequence[RunRecord]) -> tuple[list[Section], str]:
    """What runs on the same data say, and why there are no pictures of disagreements; empty where none are due."""
    arms = arms_of(records)
    if all(is_text(record.stage) for record in records):
        return language_sections(arms), ""
    return _image_sections(arms, records)


def _image_sections(arms: Sequence[Arm], records: Sequence[RunRecord]) -> tuple[list[Section], str]:
    """Everything about classifiers, and why there are no pictures of disagreements; empty where there are."""
    names = _class_names(records)
    images, no_images = _images(records)
    pictures, reason = _pictures(arms, names, images, no_images)
    sections = [*comparison_sections(arms, names), *beyond_sections(arms, images)]
    return sections + ([pictures] if pictures is not None else []), reason


def _written(out: Path, page: str) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from None
    write_atomically(out, page.encode())
    return out


def _sentence(remark: str) -> str:
    return remark[:1].upper() + remark[1:] + "."


def _class_names(records: Sequence[RunRecord]) -> tuple[str, ...]:
    for record in records:
        names = record.card.get("class_names")
        if isinstance(names, list) and names:
            return tuple(str(name) for name in names)
    return ()


def _pictures(
    arms: Sequence[Arm], names: Sequence[str], images: Images | None, no_images: str
) -> tuple[Section | None, str]:
    """The grid of pictures, or why there is none."""
    student = best(arms, "distilled") or alone(arms)
    teacher = best(arms, "teacher")
    if teacher is None or student is None:
        return None, "no run tells of a teacher and a student"
    if student.predictions is None or teacher.predictions is None:
        return None, "the runs kept no predictions of both teacher and student"
    if images is None:
        return None, no_images
    other = alone(arms)
    grid = disagreements(student, teacher, images, names, other=None if other is student else other)
    return (
        grid,
        "" if grid is not None else "student and teacher never disagree, or were not judged on the same samples",
    )


def _images(records: Sequence[RunRecord]) -> tuple[Images | None, str]:
    try:
        return images_of(judged_on(records[0])), ""
    except LimbeckError as error:
        return None, str(error)


def _title(records: Sequence[RunRecord], arms: Sequence[Arm]) -> str:
    students = sorted({model for record in records if (model := record.model("student"))})
    teachers = sorted({model for record in records if (model := record.model("teacher"))})
    distilled = [arm.name for arm in arms if arm.kind == "distilled"]
    if distilled and len(students) == 1 and len(teachers) == 1:
        return f"{teachers[0]} distilled into {students[0]}"
    if len(students) == 1:
        return f"{students[0]}: {', '.join(distilled[:3])}" if distilled else students[0]
    return ", ".join(record.folder.name for record in records[:3]) + (" and others" if len(records) > 3 else "")


def _subtitle(records: Sequence[RunRecord]) -> str:
    data = sorted({str(record.card.get("data") or _data_name(record)) for record in records} - {""})
    split = sorted({str(record.results.get("split", "test")) for record in records if record.results})
    about = sorted({str(record.recipe.get("about", "")) for record in records} - {""})
    seeds = sorted({record.seed for record in records})
    runs = f"{len(records)} run{'s' if len(records) != 1 else ''}"
    parts = [runs, f"on {', '.join(data)}" if data else "", f"with {len(seeds)} seed{'s' if len(seeds) != 1 else ''}"]
    parts.append(f"judged on the {' and '.join(split)} data" if split else "")
    line = " ".join(part for part in parts[:3] if part) + (", " + parts[3] if parts[3] else "") + "."
    return f"{about[0].rstrip('.')}. {line}" if len(about) == 1 else line


def _data_name(record: RunRecord) -> str:
    spec = record.stage.get("data", "")
    return str(spec.get("name", "")) if isinstance(spec, dict) else str(spec)


def _details(records: Sequence[RunRecord]) -> list[Section]:
    """The recipe of each arm and the machine, folded."""
    listings: list[Section] = []
    seen: set[str] = set()
    for record in records[:_LISTED_RUNS]:
        recipe = {key: value for key, value in record.recipe.items() if key != "seed"}
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        if recipe and text not in seen:
            seen.add(text)
            listings.append(Listing(f"Recipe of {record.method} ({record.folder.name})", text))
    environments = {
        yaml.safe_dump(dict(r.environment), allow_unicode=True): r.folder.name for r in records if r.environment
    }
    for text, folder in environments.items():
        listings.append(
            Listing("Machine and versions" if len(environments) == 1 else f"Machine and versions ({folder})", text)
        )
    return listings


def _machine(records: Sequence[RunRecord]) -> str:
    found = sorted({str(record.environment.get("processor", "")) for record in records} - {""})
    threads = sorted({str(record.environment.get("threads", "")) for record in records} - {""})
    if not found:
        return ""
    return f"Measured on {' and '.join(found)}" + (f", {' or '.join(threads)} threads." if threads else ".")
