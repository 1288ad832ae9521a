"""The rules of the house that no linter knows: sizes, names, and who may replace what."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "training", "service")
FILES = sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_IN_THE_MEDIAN = 400, 80, 150
# Participles, and words that say nothing: what is it that was found, held, made?
NO_NAMES = {"told", "seen", "found", "held", "made", "said", "asked", "kept", "taken"}
# MADE is a network's published name; `found` is a member of report.json.
NAMES_OF_OTHERS = {("models/families/parts/masked.py", "made"), ("training/report/contents.py", "found")}


def tree(path):
    return ast.parse(path.read_text("utf-8"))


def name_of(path):
    return str(path.relative_to(ROOT))


def is_command(function):
    """Whether Typer makes a command of it: its options are its parameters, so it is as long as they are many."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("Option", "Argument")
        for argument in [*function.args.args, *function.args.kwonlyargs]
        if argument.annotation is not None
        for node in ast.walk(argument.annotation)
    )


def test_files_are_short():
    lengths = {name_of(f): len(f.read_text("utf-8").splitlines()) for f in FILES}
    assert not {f: n for f, n in lengths.items() if n > LINES_OF_A_FILE}
    assert sorted(lengths.values())[len(lengths) // 2] < LINES_IN_THE_MEDIAN


def test_functions_are_short():
    long = {}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_command(node):
                lines = node.end_lineno - node.lineno + 1
                if lines > LINES_OF_A_FUNCTION:
                    long[f"{name_of(path)} {node.name}"] = lines
    assert not long


def test_a_class_name_stands_for_one_thing():
    """The client names what it gets as the service does, since it is the same seen from the other side of the wire."""
    homes = defaultdict(list)
    for path in FILES:
        if (ROOT / "service" / "client") not in path.parents:
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(name_of(path))
    assert not {name: files for name, files in homes.items() if len(files) > 1}


def assigned(node):
    """Names that a node gives: to a variable, a parameter, a function or a class."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name.lower()
    return ""


def test_names_are_nouns_and_verbs():
    wrong = [
        f"{name_of(path)}:{node.lineno} {assigned(node)}"
        for path in FILES
        for node in ast.walk(tree(path))
        if assigned(node).strip("_") in NO_NAMES and (name_of(path), assigned(node)) not in NAMES_OF_OTHERS
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_no_method_of_a_framework_object_is_replaced(package):
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text("utf-8")
        assert "type: ignore[method-assign]" not in text, path
        assert not re.search(r"\bapp\.state\b", text), path


def test_every_folder_of_tests_mirrors_a_folder_of_the_source():
    for folder in (ROOT / "tests").rglob("*"):
        parts = folder.relative_to(ROOT / "tests").parts
        if folder.is_dir() and parts[0] in PACKAGES and "__pycache__" not in parts:
            assert (ROOT / Path(*parts)).is_dir(), folder
