"""A strict reader of HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input", "col"}
HOSTILE = "<script>alert('x')</script>\"&$x_1$</title>"


class Page(HTMLParser):
    """Parses a page, refuses wrong nesting, and keeps what tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read_page(html: str) -> Page:
    """Parses a page and checks what holds for every page."""
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}> runs code"
            if name in ("src", "href", "action", "data", "poster", "srcset", "background", "formaction"):
                assert value.startswith(("#", "data:image/png;base64,")), f"<{tag} {name}={value[:60]}> leaves the page"
            if name == "href":
                assert value[1:] in ids, f"{value} points to nothing"
            if name in ("aria-labelledby", "aria-describedby"):
                assert value in ids, f"{name}={value} points to nothing"
            for target in re.findall(r"url\(#(.*?)\)", value):
                assert target in ids, f"url(#{target}) points to nothing"
    assert not re.search(
        r"url\((?!#)|@import|https?:|//[a-z]", "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    )
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(a.get("aria-label", "").strip() for _, a in page.elements if a.get("role") == "img")
    assert [tag for tag, _ in page.elements if tag in ("iframe", "object", "embed", "link", "base", "form")] == []
    assert len(page.scripts) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    return page
