"""What README.md and docs/ point at exists: links between pages, anchors, modules, paths of the repository."""

import importlib
import re
from functools import reduce

import pytest
from doc_pages import PAGES, ROOT, code_spans, headings

FOLDERS = ("models/", "training/", "service/", "deploy/", "docs/", "src/", "tests/")
NO_MODULES = ("vaegis.sqlite", "vaegis.service")  # a file; a unit of systemd, which is a package too


def anchors(text):
    """The fragments that a page's headings can be reached by."""
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in headings(text)]
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    text = page.read_text("utf-8")
    for target, fragment in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text):
        place = page.parent / target if target else page
        assert place.exists(), f"{page.name} -> {target}"
        if fragment:
            assert fragment in anchors(place.read_text("utf-8")), f"{page.name} -> {target}#{fragment}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_module_exists(page):
    for name in sorted(set(re.findall(r"\bvaegis(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")))):
        if name not in NO_MODULES:
            resolve(name)


def resolve(name):
    """The module, or what a module holds, of a dotted name."""
    parts = name.split(".")
    for known in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:known]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[known:], module)
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_path_of_the_repository_exists(page):
    for path in code_spans(page.read_text("utf-8")):
        if path.startswith(FOLDERS) and re.fullmatch(r"[\w./-]+", path):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_page_can_be_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in readme, page.name


def test_every_decision_has_a_number_of_its_own():
    numbers = [p.name[:4] for p in (ROOT / "docs" / "decisions").glob("*.md")]
    assert all(re.fullmatch(r"\d{4}", n) for n in numbers)
    assert len(set(numbers)) == len(numbers)
