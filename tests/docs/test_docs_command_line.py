"""docs/command-line.md against the command: commands, options, exit codes, columns of files; both ways."""

import ast
import re

import pytest
import typer
from doc_pages import PAGES, ROOT, code_spans, first_cells, headings, page, rows, section

from vaegis.models.outputs import event_file, score_file
from vaegis.service.cli import COMMANDS, GROUPS, build

PAGE = page("command-line.md")
TYPES = {  # as Arrow calls them -> as the page does
    "string": "text",
    "double": "float64",
    "list<item: string>": "list of text",
    "list<element: string>": "list of text",
}


def commands():
    """Every command and subcommand with its click parameters, by what is typed."""
    root = typer.main.get_command(build())
    tree, ahead = {}, [(("vaegis",), root)]
    while ahead:
        path, command = ahead.pop()
        tree[" ".join(path)] = command
        ahead += [((*path, n), c) for n, c in getattr(command, "commands", {}).items()]
    return tree


COMMAND = commands()
LEAVES = [name for name, command in COMMAND.items() if not hasattr(command, "commands")]


def spellings(command):
    """Each option of a command as it is typed, `--no-...` forms included."""
    return [o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)]


def test_every_command_is_built():
    assert {f"vaegis {name}" for name in (*COMMANDS, *GROUPS)} <= set(COMMAND)


@pytest.mark.parametrize("name", COMMAND)
def test_every_option_has_help(name):
    command = COMMAND[name]
    assert command.help or command.callback is None
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_a_section_with_an_example(name):
    start = PAGE.index(f" {name}\n")
    end = re.search(r"^#{2,3} ", PAGE[start:], re.M)
    example = PAGE[start : start + end.start() if end else None]
    assert re.search(rf"^\$ {name}\b", example, re.M), f"no example of {name}"


@pytest.mark.parametrize("name", LEAVES)
def test_the_options_of_a_section_are_those_of_its_command(name):
    listing = first_cells(section(PAGE, name), "option")
    assert sorted(listing) == sorted([*spellings(COMMAND[name]), *arguments(COMMAND[name])])


def arguments(command):
    return [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]


@pytest.mark.parametrize("name", LEAVES)
def test_defaults_are_what_the_command_takes(name):
    for row in rows(section(PAGE, name), "option"):
        for parameter in COMMAND[name].params:
            if f"`{parameter.opts[0]}`" in row[0] and isinstance(parameter.default, (int, float, str)):
                flag = {"True": "on", "False": "off"}.get(str(parameter.default))
                assert row[1] == (flag or f"`{parameter.default}`"), f"{name} {parameter.opts[0]}"


def test_no_section_is_of_a_command_that_does_not_exist():
    assert [h for h in headings(PAGE) if h.startswith("vaegis") and h not in COMMAND] == []


def test_every_exit_code_is_documented():
    listing = {int(code) for code in first_cells(section(PAGE, "Exit codes"), "code")}
    assert listing == {2, 0} | exits()  # 2 is click's own


def exits():
    """The numbers that the command's modules end the process with."""
    codes = set()
    for file in (ROOT / "service" / "cli").rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "typer.Exit"):
                for given in [n for a in (*node.args, *(k.value for k in node.keywords)) for n in ast.walk(a)]:
                    value = constants.get(given.id) if isinstance(given, ast.Name) else getattr(given, "value", None)
                    codes |= {value} if isinstance(value, int) else set()
    return codes


@pytest.mark.parametrize(
    ("title", "schema"),
    [("Score file", score_file.schema(["score"])), ("Event file", event_file.schema(".parquet"))],
)
def test_every_column_of_a_file_is_documented_with_its_type(title, schema):
    """`TERM` stands for the evidence terms, of which each model has its own."""
    types = {name: row[1] for row in rows(section(PAGE, title), "column") for name in code_spans(row[0])}
    types.pop("TERM", None)
    assert types == {field.name: TYPES.get(str(field.type), str(field.type)) for field in schema}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_of_the_pages_have_the_options_that_they_are_given(path):
    for line in path.read_text("utf-8").replace("\\\n", " ").splitlines():
        for name, rest in re.findall(r"\bvaegis ((?:models |keys )?[a-z]+)\b([^|;&`>]*)", line):
            command = COMMAND.get(f"vaegis {name}")
            options = re.findall(r"(?<=\s)--[a-z-]+", rest)
            if command is not None:
                assert [o for o in options if o not in (*spellings(command), "--help")] == [], line


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_of_the_pages_exist(path):
    text = path.read_text("utf-8")
    lines = [*code_spans(text), *re.findall(r"^(?:\$ |    )(vaegis .*)$", text, re.M)]
    for words in [line.split() for line in lines if line.startswith("vaegis ")]:
        name = " ".join(words[:3] if words[1] in GROUPS else words[:2])
        assert name in COMMAND or words[1].startswith(("-", "COMMAND", "failed")), name
