"""What is installed occupies one name: a user's own packages `models`, `service` and `training` live beside it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from toy_bundles import VECTOR, toy_bundle

ROOT = Path(__file__).parents[1]
OWN = ("models", "service", "training")

SCRIPT = """
import sys
import models, service, training
assert {models.OWNER, service.OWNER, training.OWNER} == {"the user"}

import vaegis
light = {"torch", "onnxruntime", "numpy", "httpx"} & set(sys.modules)
assert not light, light

import numpy as np
scorer = vaegis.Scorer(vaegis.open_bundle(sys.argv[1]))
verdicts = scorer.score(np.load("rows.npy"), alpha=0.05)
print(verdicts.evidence["score"].tolist(), verdicts.status)
print(vaegis.Client.__module__, sorted(vaegis.__all__), vaegis.__file__)
"""


def environment(folder, *install):
    """A fresh environment with the product alone installed; what it depends on is taken from this one.

    A folder on PYTHONPATH lends its packages, but not what its `.pth` files add: so not this checkout.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    lent = dict(os.environ, PYTHONPATH=sysconfig.get_paths()["purelib"])
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
        + ["--no-build-isolation", "--disable-pip-version-check", *install],
        check=True,
        env=lent,
    )
    return python, lent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.mark.parametrize("what", ["wheel", "checkout"])
def test_a_users_own_packages_and_ours_live_side_by_side(what, wheel, tmp_path):
    python, env = environment(tmp_path / "env", *([wheel] if what == "wheel" else ["-e", ROOT]))
    toy_bundle(tmp_path / "bundle", VECTOR)
    work = tmp_path / "work"
    for name in OWN:
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text('OWNER = "the user"\n')
    np.save(work / "rows.npy", np.array([[1.0, 2.0, 3.0], [12.0, 15.0, 18.0]]))
    done = subprocess.run(
        [python, "-c", SCRIPT, tmp_path / "bundle"], cwd=work, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{[14 / 3, 231.0]} {['ok', 'anomalous']}".replace(repr(14 / 3), repr(float(np.float32(14 / 3))))
    assert lines[1].startswith("vaegis.service.client ['Client', 'Scorer', 'open_bundle']")
    inside = str(tmp_path / "env") if what == "wheel" else str(ROOT / "src")
    assert lines[1].split()[-1].startswith(inside)

    command = [python.with_name("vaegis"), "score", "rows.npy", "--bundle", tmp_path / "bundle", "--out", "v.csv"]
    done = subprocess.run(command, cwd=work, env=dict(env, PYTHONSAFEPATH=""), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 samples are anomalous" in done.stdout
    assert (work / "v.csv").read_text().splitlines()[2].startswith('"rows.npy",1,,"anomalous",231,0.005,')


def test_nothing_else_is_installed(wheel, tmp_path):
    python, env = environment(tmp_path / "env", wheel)
    script = "import sysconfig, os; print(*sorted(os.listdir(sysconfig.get_paths()['purelib'])))"
    names = subprocess.run([python, "-c", script], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert [n for n in names if not n.endswith(".dist-info")] == ["vaegis"]
    for name in OWN:
        done = subprocess.run([python, "-c", f"import {name}"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert f"No module named '{name}'" in done.stderr


def test_every_file_of_the_source_is_in_the_wheel(wheel):
    import zipfile

    packed = set(zipfile.ZipFile(wheel).namelist())
    for package in OWN:
        for path in (ROOT / package).rglob("*.py"):
            assert f"vaegis/{path.relative_to(ROOT)}" in packed
    assert "vaegis/py.typed" in packed


def test_importing_the_package_is_light_and_a_wrong_name_is_told():
    script = (
        "import sys, vaegis\n"
        "assert not {'numpy', 'torch', 'onnxruntime', 'httpx', 'pydantic'} & set(sys.modules)\n"
        "assert {'Client', 'Scorer', 'open_bundle'} <= set(dir(vaegis))\n"
        "try:\n    vaegis.Scorr\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "vaegis has no 'Scorr'; it has Client, Scorer, open_bundle."
