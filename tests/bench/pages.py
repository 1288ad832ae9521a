"""docs/benchmarks.md: what stands between its markers is written by the benchmarks, the rest by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.bench.sets import REPOSITORY

PAGE = REPOSITORY / "docs" / "benchmarks.md"


def replaced(page: str, sections: Mapping[str, str]) -> str:
    """The page with each named section's text anew.

    Raises:
        ValueError: the page has no such markers, or more than one pair.
    """
    for name, text in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise ValueError(f"docs/benchmarks.md needs the markers {begin} and {end}, once each, in this order.")
        head, rest = page.split(begin)
        tail = rest.split(end)[1]
        page = f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}"
    return page


def write(sections: Mapping[str, str], page: Path = PAGE) -> None:
    """Writes the sections into the page."""
    page.write_text(replaced(page.read_text("utf-8"), sections), "utf-8")
