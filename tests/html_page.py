"""An HTML page as tests read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "br", "img", "link"}
LOADING = {"script", "link", "img", "iframe", "image"}  # tags that ask for something


class HtmlPage(HTMLParser):
    """Tags, ids, references and text of a page; every tag that opens must close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        assert not self.open
        # Nothing is loaded from elsewhere, whatever the page shows.
        assert not set(self.tags) & LOADING and set(self.targets) <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            if key in ("href", "src", "action", "aria-labelledby"):
                self.targets += [each.removeprefix("#") for each in str(value).split()]
            self.targets += re.findall(r"url\(#?([^)]+)\)", str(value))
            assert not key.startswith("on"), key

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join("".join(text for _, text in self.texts).split())

    def texts_in(self, tag: str) -> list[str]:
        return [text for around, text in self.texts if around == tag]
