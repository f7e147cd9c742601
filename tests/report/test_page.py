"""Pages: whole, valid, silent, and deaf to hostile text."""

from __future__ import annotations

import base64
import builtins
import hashlib
import sys

import numpy as np
import pytest

from limbeck.errors import MissingExtraError
from limbeck.report.page import render
from limbeck.report.png import encode_png
from limbeck.report.sections import (
    Cell,
    Column,
    Figure,
    Figures,
    Guess,
    Highlight,
    Highlights,
    ImageGrid,
    Listing,
    Picture,
    PictureGroup,
    Section,
    Table,
    Text,
)
from tests.report.pages import HOSTILE, Page, read_page


def everything(text: str) -> list[Section]:
    """One section of each kind with ``text`` wherever a text may stand."""
    picture = Picture(
        encode_png(np.zeros((1, 4, 4), np.uint8)),
        text,
        (Guess(text, text, 0.75, True), Guess(text, text, 0.25, False)),
        text,
    )
    drawing = Figure(text, "<svg viewBox='0 0 1 1'></svg>", text, text)
    return [
        Text(text, (text, text), "note"),
        Highlights(text, (Highlight(text, text, text),)),
        Table(
            text,
            (Column(text, text, numeric=False), Column(text, text)),
            ((Cell(text, colour=1), Cell(text, 0.5, best=True)),),
            text,
        ),
        Figures(text, (drawing,), text),
        ImageGrid(text, (PictureGroup(text, (picture,)),), text),
        Listing(text, text),
    ]


def test_every_kind_of_section_makes_a_valid_page() -> None:
    page = read_page(render("A title", everything("plain"), subtitle="below", footer="at the end"))
    assert page.text.startswith("A title limbeck A title below")
    assert "at the end" in page.text
    assert len(page.all("section")) == 6
    assert len(page.all("img")) == 1
    assert len(page.all("figure")) == 1


def test_hostile_texts_stay_texts() -> None:
    harmless = read_page(render("x", everything("x"), subtitle="x", footer="x"))
    page = read_page(render(HOSTILE, everything(HOSTILE), subtitle=HOSTILE, footer=HOSTILE))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert page.text.count("<script>alert('x')</script>") >= 15
    assert page.scripts == harmless.scripts


def test_the_browser_may_run_only_the_pages_own_script() -> None:
    page = read_page(render("x", []))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "http" not in policy


def test_sections_of_equal_or_strange_titles_have_addresses_of_their_own() -> None:
    titles = ["Results", "Results", "results!", "Ergebnisse", "結果", "", "", "Results 2"]
    page = read_page(render("x", [Text(title, ("p",)) for title in titles]))
    addresses = [a["id"] for a in page.all("section") if "id" in a]
    assert len(addresses) == 6
    assert len(page.all("a")) == 6


def test_numbers_keep_their_unit_on_the_line() -> None:
    html = render("x", [Text("", ("reaches 91.20 ± 0.30 % in 3.1 ms and 5 kB of 20 k images",))])
    assert "91.20\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.30\N{NO-BREAK SPACE}%" in html
    assert "3.1\N{NO-BREAK SPACE}ms" in html
    assert "20\N{NO-BREAK SPACE}k images" in html


def test_table_cells_say_how_they_sort_and_which_is_best() -> None:
    rows = ((Cell("one", colour=0), Cell("9.10 ± 0.20 %", 0.091, best=True)), (Cell("two"), Cell("–")))
    page = read_page(render("x", [Table("T", (Column("Model", numeric=False), Column("Accuracy")), rows, "caption")]))
    cells = page.all("td")
    assert cells[0] == {"class": "number best", "data-sort": "0.091"}
    assert cells[1] == {"class": "number"}
    assert "9.10 ± 0.20 %" in page.text


def test_the_strict_reader_is_strict() -> None:
    for broken in ("<p><b></p></b>", "<div>", "</div>"):
        with pytest.raises(AssertionError):
            Page(broken)
    page = render("x", [Text("a", ("b",))])
    for bad in (
        page.replace("<main>", '<main><img src="https://example.org/x.png" alt="x">'),
        page.replace("<main>", '<main><img src="data:image/png;base64,AA" alt="">'),
        page.replace("<main>", '<main><div id="a"></div>'),
        page.replace("<main>", '<main><a href="#nowhere">x</a>'),
        page.replace("<main>", '<main onclick="x()">'),
        page.replace("<main>", "<main><script>x</script>"),
        page.replace("<style>", "<style>@import 'x';"),
    ):
        with pytest.raises(AssertionError):
            read_page(bad)


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "jinja2":
            raise ImportError(name)
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    for name in [n for n in sys.modules if n.split(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"limbeck\[report\]"):
        render("x", [])
