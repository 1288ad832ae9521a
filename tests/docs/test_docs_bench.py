"""tests/bench/README.md against the benchmarks: every target, module and section of the page they write; both ways."""

import re

from doc_pages import ROOT, code_spans, first_cells, page, rows, section

BENCH = ROOT / "tests" / "bench"
PAGE = (BENCH / "README.md").read_text("utf-8")
TABLE = rows(PAGE, "target")


def test_every_target_is_documented():
    targets = re.findall(r"^(bench-[a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert sorted(first_cells(PAGE, "target")) == sorted(targets)


def test_every_benchmark_is_documented():
    programs = {f.stem for f in BENCH.glob("*.py") if '__name__ == "__main__"' in f.read_text("utf-8")}
    assert {name for row in TABLE for name in code_spans(row[1])} == programs


def test_every_other_file_is_documented():
    programs = {f"{name}.py" for row in TABLE for name in code_spans(row[1])}
    files = {f.name for f in BENCH.glob("*.py") if not f.name.startswith(("test_", "__"))}
    assert set(first_cells(section(PAGE, "What is where"))) - {"peers/"} == files - programs


def test_the_sections_of_the_page_are_those_that_are_written():
    markers = re.findall(r"^<!-- ([a-z-]+) -->$", page("benchmarks.md"), re.M)
    assert sorted(name for row in TABLE for name in code_spans(row[5])) == sorted(markers)
