"""The layout, and what must be documented: import contracts, options, families, settings and metrics."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from vaegis.models.families import FAMILIES
from vaegis.models.families.family import keywords
from vaegis.service.cli import COMMANDS, GROUPS, build
from vaegis.service.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def documents():
    return "\n".join(p.read_text("utf-8") for p in DOCS)


def commands():
    """Every command and subcommand with its click parameters."""
    root = typer.main.get_command(build())
    found, left = {}, [(("vaegis",), root)]
    while left:
        path, command = left.pop()
        found[" ".join(path)] = command
        left += [((*path, n), c) for n, c in getattr(command, "commands", {}).items()]
    return found


COMMAND = commands()


def test_imports_run_one_way():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_scoring_works_where_torch_cannot_be_imported(fitted, sources, tmp_path):
    """A process in which importing torch, or the families, raises."""
    made = fitted("vae", "vector")
    script = f"""
import sys
class Never:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'training', 'lightning_fabric', 'sklearn', 'scipy', 'matplotlib'):
            raise ImportError(name + ' must not be imported here')
sys.meta_path.insert(0, Never())
sys.argv = ['vaegis', 'score', {str(sources / "vector-test.npz")!r}, '--bundle', {str(made.bundle.path)!r}]
from vaegis.service.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 40 samples are anomalous" in done.stdout


def test_every_command_is_built():
    assert {f"vaegis {name}" for name in (*COMMANDS, *GROUPS)} <= set(COMMAND)


@pytest.mark.parametrize("name", COMMAND)
def test_every_option_has_help(name):
    command = COMMAND[name]
    assert command.help or command.callback is None
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_documented_with_its_arguments(name):
    text = documents()
    assert re.search(rf"`{name}`|\b{name}\b", (ROOT / "README.md").read_text("utf-8")), "README.md"
    for argument in keywords(FAMILIES[name]):
        assert re.search(rf"`{argument}`|--set {argument}=", text), f"argument {argument} of {name}"


def test_every_evidence_term_is_documented(fitted):
    text = documents()
    for kind in ("image", "vector"):
        for term in fitted("vae", kind).fitted.family.meaning:
            assert f"`{term}`" in text, term


def test_every_setting_is_documented():
    text = documents()
    for name in Settings.model_fields:
        assert f"VAEGIS_{name.upper()}" in text, name


def test_every_metric_is_documented():
    source = (ROOT / "service" / "metrics.py").read_text("utf-8")
    names = set(re.findall(r"\"(vaegis_[a-z_]+)\"", source))
    assert "vaegis_samples_scored_total" in names or "vaegis_samples_scored" in names
    text = documents()
    for name in names:
        assert name in text, name


def test_every_decision_has_a_number_of_its_own():
    numbers = [p.name[:4] for p in (ROOT / "docs" / "decisions").glob("*.md")]
    assert all(re.fullmatch(r"\d{4}", n) for n in numbers)
    assert len(set(numbers)) == len(numbers)


def test_every_link_between_pages_leads_somewhere():
    for page in DOCS:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_the_readme_names_every_folder_of_the_source():
    text = (ROOT / "README.md").read_text("utf-8")
    for package in ("models", "training", "service"):
        for module in (ROOT / package).rglob("__init__.py"):
            folder = module.parent.relative_to(ROOT)
            assert len(folder.parts) == 1 or f"`{folder}/`" in text, folder


def test_pinned_versions_cover_what_is_required():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        re.split(r"[=<>]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    }
    wanted = [*told["dependencies"], *told["optional-dependencies"]["train"], *told["optional-dependencies"]["dev"]]
    for requirement in wanted:
        name = re.split(r"[\[<>=;! ]", requirement)[0].lower()
        if "platform_system !=" not in requirement:  # pinned on the platform they are for
            assert name in pinned, name


def test_help_answers_without_the_heavy_libraries():
    script = (
        "import sys; sys.argv = ['vaegis', '--help']\n"
        "from vaegis.service.cli import build\n"
        "try:\n    build()(prog_name='vaegis')\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'sklearn', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, COLUMNS="200")
    )
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout
