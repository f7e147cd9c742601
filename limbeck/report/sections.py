"""What a page is made of. Sections are plain records; :func:`limbeck.report.page.render` turns them into HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Text:
    """Paragraphs.

    Attributes:
        title: heading; none when empty.
        paragraphs: plain text, each a paragraph.
        tone: ``lead`` for the sentence that says it all, ``note`` for remarks on what is missing or doubtful.
    """

    title: str
    paragraphs: tuple[str, ...]
    tone: Literal["plain", "lead", "note"] = "plain"


@dataclass(frozen=True)
class Highlight:
    """One number that a reader should remember.

    Attributes:
        value: the number with its unit.
        label: what it is.
        detail: what to compare it with.
    """

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Highlights:
    """The few numbers that a reader should remember, side by side."""

    title: str
    items: tuple[Highlight, ...]


@dataclass(frozen=True)
class Cell:
    """An entry of a table.

    Attributes:
        text: what is shown.
        sort: the number to sort by; None sorts by the text.
        best: whether this is the best entry of its column.
        colour: number of the series colour that marks the row, in its first cell.
    """

    text: str
    sort: float | None = None
    best: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        explanation: shown to whoever points at the heading, and listed under the table.
        numeric: whether entries are numbers.
    """

    title: str
    explanation: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by its columns.

    Attributes:
        title: heading.
        columns: its columns; the first names the rows.
        rows: entries, as many a row as there are columns.
        caption: what the numbers are.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        title: heading.
        svg: what :meth:`limbeck.report.figures.canvas.Drawing.svg` gave; it is not escaped.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
    """

    title: str
    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """Drawings that belong together, side by side where there is room."""

    title: str
    figures: tuple[Figure, ...]
    text: str = ""


@dataclass(frozen=True)
class Guess:
    """What a model says about a picture.

    Attributes:
        who: the model.
        says: the class it predicts.
        probability: how sure it is, in [0, 1].
        right: whether it is right.
    """

    who: str
    says: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Picture:
    """A sample and what models say about it.

    Attributes:
        png: the image file.
        truth: the true class, or another line to stand below the picture.
        guesses: what models say; none where the picture only shows something.
        name: which sample it is.
    """

    png: bytes
    truth: str
    guesses: tuple[Guess, ...]
    name: str

    @property
    def alt(self) -> str:
        """The picture in words."""
        if not self.guesses:
            return f"{self.name}: {self.truth}."
        said = "; ".join(f"{g.who} says {g.says} ({g.probability:.0%})" for g in self.guesses)
        return f"{self.name}, in truth {self.truth}. {said}."


@dataclass(frozen=True)
class PictureGroup:
    """Pictures of one kind, with how many samples are of that kind."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ImageGrid:
    """Samples with their images, in groups."""

    title: str
    groups: tuple[PictureGroup, ...]
    text: str = ""


@dataclass(frozen=True)
class Listing:
    """Text to be shown as it is, such as a recipe, folded until asked for."""

    title: str
    text: str


Section = Text | Highlights | Table | Figures | ImageGrid | Listing
