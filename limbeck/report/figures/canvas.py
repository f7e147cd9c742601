"""Drawings as inline SVG that take colours and letters from the page, so that they suit a light and a dark one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from limbeck.errors import MissingExtraError

WIDTH, HEIGHT = 5.0, 3.3
"""Inches of a drawing at 72 points an inch: narrow enough for its letters to be readable on a phone."""

_LONGEST_NAME = 24
_LEGEND_COLUMNS = 3
_LETTER, _HANDLE = 5.0, 31.0
"""Points that a letter of a legend takes on average, and the line and spaces beside each label."""

# Colours that nobody would choose stand for the page's own, which replace them in the finished drawing.
INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
_SERIES = tuple(f"#0505{n:02x}" for n in range(10))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    c: f"series-{n}" for n, c in enumerate(_SERIES)
}

_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "patch.linewidth": 0.0,
}


def series(number: int) -> str:
    """Returns the stand-in of the page's series colour ``number``; 0 is the page's accent."""
    return _SERIES[number % len(_SERIES)]


def short(name: str) -> str:
    """Returns a name that fits beside an axis: long ones lose their end.

    Example:
        >>> short("an unreasonably long name of a class")
        'an unreasonably long na…'
    """
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


class Drawing:
    """A matplotlib figure in the page's style.

    Args:
        name: what tells this drawing from the others of the page.
        width: inches.
        height: inches.
        panels: axes side by side.
    """

    def __init__(self, name: str, *, width: float = WIDTH, height: float = HEIGHT, panels: int = 1) -> None:
        self.name = name
        self._size = (width, height)
        self._panels = panels
        self._tips: dict[str, str] = {}
        self._figure: Any = None

    @contextmanager
    def axes(self) -> Iterator[Any]:
        """Gives the axes (a list of them for several panels) to draw in.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        with _matplotlib().rc_context(_STYLE):
            from matplotlib.figure import Figure

            self._figure = Figure(figsize=self._size, layout="constrained")
            made = self._figure.subplots(1, self._panels, squeeze=False)[0]
            for axes in made:
                axes.tick_params(length=0)
            yield made[0] if self._panels == 1 else list(made)

    def tip(self, artist: Any, text: str) -> None:
        """Shows ``text`` to whoever points at ``artist``."""
        name = f"tip{len(self._tips)}"
        artist.set_gid(name)
        self._tips[name] = text

    @staticmethod
    def legend_above(axes: Any) -> None:
        """Puts the legend over the drawing, where it covers nothing, in as many columns as there is room for."""
        labels = axes.get_legend_handles_labels()[1]
        room = 72 * axes.figure.get_figwidth() * axes.get_position().width
        columns = next((n for n in range(_LEGEND_COLUMNS, 1, -1) if _legend_width(labels, n) <= room), 1)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            columnspacing=1.2,
            handletextpad=0.4,
            borderaxespad=0.2,
        )

    def svg(self) -> str:
        """Returns the drawing as an ``svg`` element without references to anything outside it."""
        buffer = io.StringIO()
        with _matplotlib().rc_context({**_STYLE, "svg.hashsalt": self.name}):
            self._figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        root = ElementTree.fromstring(buffer.getvalue())
        for element in list(root.iter()):
            _adapt(element)
        _name_targets(root, re.sub(r"\W+", "-", self.name))
        for element in root.iter():
            for child in list(element):
                if _is_empty(child):
                    element.remove(child)
        self._place_tips(root)
        for element in root.iter():
            element.attrib.pop("gid", None)
        attributes = {"viewBox": root.get("viewBox", ""), "aria-hidden": "true", "focusable": "false"}
        root.attrib.clear()
        root.attrib.update(attributes)
        return ElementTree.tostring(root, encoding="unicode")

    def _place_tips(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            text = self._tips.get(element.get("gid", ""))
            if text is not None:
                title = ElementTree.Element("title")
                title.text = text
                element.insert(0, title)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Points that a legend takes about; its columns are filled one after the other."""
    rows = -(-len(labels) // columns)
    parts = [labels[start : start + rows] for start in range(0, len(labels), rows)] if rows else []
    return sum(_HANDLE + _LETTER * max(map(len, part)) for part in parts)


def ticker() -> Any:
    """Returns matplotlib's module of tick locators and formatters.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _matplotlib()
    from matplotlib import ticker as module

    return module


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "drawing a report") from None
    return matplotlib


def _adapt(element: ElementTree.Element) -> None:
    """Turns an element of a stand-alone SVG file into one of a page: no namespaces, the page's colours and font."""
    element.tag = element.tag.rpartition("}")[2]
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        element.set(name.rpartition("}")[2], value)
    if element.tag != "text":
        element.text = None
    element.tail = None
    style = element.get("style")
    if style is not None:
        style = re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", style)
        element.set("style", re.sub(r"'DejaVu Sans'[^;]*", "var(--font)", style))
    if "d" in element.attrib:
        path = " ".join(element.attrib["d"].split())
        element.set("d", re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.2f}", path))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]


def _name_targets(root: ElementTree.Element, prefix: str) -> None:
    """Gives ids that are referred to a prefix of the drawing's own, and takes all others away."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            found = re.search(r"url\(#(.*?)\)", value) or (re.match(r"#(.*)", value) if name == "href" else None)
            if found:
                used.add(found[1])
                element.set(name, value.replace("#" + found[1], f"#{prefix}-{found[1]}"))
    for element in root.iter():
        identity = element.attrib.pop("id", "")
        if identity in used:
            element.set("id", f"{prefix}-{identity}")
        elif identity.startswith("tip"):
            element.set("gid", identity)


def _is_empty(element: ElementTree.Element) -> bool:
    """Whether an element shows nothing: metadata, a file's style sheet, backgrounds, groups without content."""
    if element.tag in ("metadata", "style"):
        return True
    if element.tag in ("g", "defs"):
        return all(_is_empty(child) for child in element)
    return element.get("style") in ("fill: none", "fill: none; opacity: 0")
