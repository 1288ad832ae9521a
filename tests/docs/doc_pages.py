"""Pages of the documentation as the tests read them: sections, tables, what stands in backticks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), ROOT / "tests" / "bench" / "README.md"]


def page(name):
    """The text of a page of docs/."""
    return (DOCS / name).read_text("utf-8")


def prose(text):
    """The text without its blocks of code, where `#` begins a comment and not a heading."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def headings(text):
    """The titles of a page, in order."""
    return re.findall(r"^#{1,6} (.+)$", prose(text), re.M)


def section(text, title):
    """What stands under the heading that `title`, a regular expression, matches, sub-sections included."""
    text = prose(text)
    heading = re.search(rf"^(#{{1,6}}) (?:{title})$", text, re.M)
    assert heading, f"no heading {title!r}"
    rest = text[heading.end() :]
    end = re.search(rf"^#{{1,{len(heading[1])}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


def rows(text, head=None):
    """The rows of the tables, each a list of cells, without heads and rules.

    Args:
        head: only of tables whose first column is headed so.
    """
    table, first = [], None
    lines = [*text.splitlines(), ""]
    for line, after in zip(lines, lines[1:], strict=False):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|") or _is_rule(line):
            continue
        if _is_rule(after):
            first = cells[0]
        elif head in (None, first):
            table.append(cells)
    return table


def _is_rule(line):
    return re.fullmatch(r"\|[-:| ]+\|", line) is not None


def code_spans(text):
    """What stands in backticks, in order, blocks of code left out."""
    return re.findall(r"`([^`]+)`", prose(text))


def first_cells(text, head=None):
    """What stands in backticks in the first column of the tables."""
    return [name for row in rows(text, head) for name in code_spans(row[0])]
