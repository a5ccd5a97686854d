"""Pieces of a page: escaped text, headings with a table of contents, tables that scroll in a box of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")
Cell = str  # HTML already: what comes from a run is escaped where a cell is made


def text(value: object) -> str:
    """A value as HTML."""
    return escape(str(value))


class Page:
    """One HTML file that needs no other; sections are added, `html` gives the text."""

    def __init__(self, title: str, about: str) -> None:
        self.title, self.about = title, about
        self.sections: list[str] = []
        self.contents: list[tuple[int, str, str]] = []  # level, anchor, words
        self.rules = ""  # of style, for what is on this page only
        self._anchors: set[str] = set()

    def anchor(self, words: str) -> str:
        """An id that no other element has."""
        base = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "part"
        found, count = base, 1
        while found in self._anchors:
            count += 1
            found = f"{base}-{count}"
        self._anchors.add(found)
        return found

    def heading(self, level: int, words: str, listed: bool = True) -> str:
        """A heading, in the table of contents where `listed`."""
        anchor = self.anchor(words)
        if listed:
            self.contents.append((level, anchor, words))
        return f'<h{level} id="{anchor}">{text(words)}</h{level}>'

    def table(self, caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "") -> str:
        """A table whose first column names its rows; cells are HTML, caption and head are text."""
        anchor = self.anchor(f"table {caption[:40]}")
        top = "".join(f'<th scope="col">{text(word)}</th>' for word in head)
        body = "".join(
            f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            for first, *cells in rows
        )
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{anchor}"><table class="{kind}">'
            f'<caption id="{anchor}"><span>{text(caption)}</span></caption><thead><tr>{top}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def add(self, *parts: str) -> None:
        """A section; its first part is its heading."""
        self.sections.append(f"<section>{''.join(parts)}</section>")

    def html(self) -> str:
        """The whole file."""
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<style>{STYLE.read_text(encoding='utf-8')}{self.rules}</style></head><body>"
            f'<header><h1>{text(self.title)}</h1><p class="quiet">{text(self.about)}</p></header>'
            f'<nav aria-label="Contents">{_listed(self.contents)}</nav><main>{"".join(self.sections)}</main>'
            "</body></html>\n"
        )


def _listed(contents: Sequence[tuple[int, str, str]]) -> str:
    """Sections in a list, what is below one folded behind it where there is much of it."""
    found = ""
    for i, (level, anchor, words) in enumerate(contents):
        if level > 2:
            continue
        below = []
        for deeper, other, said in contents[i + 1 :]:
            if deeper == 2:
                break
            below.append(f'<li><a href="#{other}">{text(said)}</a></li>')
        inner = f"<ul>{''.join(below)}</ul>" if below else ""
        if len(below) > 12:
            inner = details(f"{len(below)} parts", inner)
        found += f'<li><a href="#{anchor}">{text(words)}</a>{inner}</li>'
    return f"<ol>{found}</ol>"


def details(summary: str, inner: str, opened: bool = False) -> str:
    """What is folded until asked for."""
    return f"<details{' open' if opened else ''}><summary>{text(summary)}</summary>{inner}</details>"


def figure(picture: str, caption: str, below: str = "") -> str:
    """A picture with its caption, and a legend below."""
    return f"<figure><figcaption>{text(caption)}</figcaption>{picture}{below}</figure>"


def figures(parts: Sequence[str]) -> str:
    """Pictures side by side where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they are; values are HTML."""
    return "<dl>" + "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in pairs) + "</dl>"
