"""The layout: import contracts, what may be imported where, the README's folders, pinned versions.

That the pages say what the code does is tested in tests/docs/.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
        heavy = ('torch', 'lightning_fabric', 'sklearn', 'scipy', 'matplotlib')
        if name.split('.')[0] in heavy or name.startswith(('vaegis.training', 'vaegis.models.families')):
            raise ImportError(name + ' must not be imported here')
sys.meta_path.insert(0, Never())
sys.argv = ['vaegis', 'score', {str(sources / "vector-test.npz")!r}, '--bundle', {str(made.bundle.path)!r}]
from vaegis.service.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 40 samples are anomalous" in done.stdout


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
