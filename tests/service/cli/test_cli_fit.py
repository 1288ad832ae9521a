import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toy_data import SMALL, digits, vectors
from vaegis.models.bundle import open_bundle
from vaegis.models.errors import Refusal
from vaegis.service.cli.options import arguments, duration, size

QUICK = ["--steps", "20", *(a for k, v in SMALL["vae"].items() for a in ("--set", f"{k}={v}"))]


@pytest.fixture
def source(tmp_path):
    np.savez(tmp_path / "clean.npz", x=vectors(150, 1))
    return tmp_path / "clean.npz"


def test_a_model_is_registered_promoted_and_scores(vaegis, source, tmp_path):
    done = vaegis("fit", source, "--name", "bracket", *QUICK, "--alpha", "0.1", "--device", "cpu")
    assert done.code == 0, done
    assert "bracket version 1, now its champion" in done.out
    assert "learned from 60 clean samples, validated on 30, calibrated on 60; 20 steps" in done.out
    assert "10.00% false alarms" in done.out
    report = Path(re.search(r"report: (.*report\.html)", done.out)[1])
    assert tmp_path / "home" in report.parents
    assert report.read_text("utf-8").lower().startswith("<!doctype html")
    listed = json.loads(vaegis("models", "list", "--json").out)
    assert [m["name"] for m in listed] == ["bracket"]
    (version,) = json.loads(vaegis("models", "show", "bracket", "--json").out)["versions"]
    assert re.fullmatch("[0-9a-f]{64}", version["training_digest"]), "which clean data it learned from"
    assert vaegis("score", source, "--model", "bracket").code == 0
    # The same command again gives the same bundle, and says so.
    again = vaegis("fit", source, "--name", "bracket", *QUICK, "--alpha", "0.1", "--device", "cpu")
    assert "bracket version 1, registered before" in again.out
    assert not list((tmp_path / "home").glob(".fit-*")), "nothing half made is left"


def test_a_folder_of_images_with_a_broken_one(vaegis, tmp_path):
    parts = tmp_path / "parts[1]"
    parts.mkdir()
    for i, picture in enumerate(digits(most=40)):
        Image.fromarray(picture).save(parts / f"part_{i}.png")
    (parts / "[red]part_41.png").write_bytes(b"\x89PNG broken")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("width = 4\nlatent = 2\nbeta = 0.5\n")
    out = tmp_path / "made[1]" / "bundle"
    done = vaegis(
        "fit", parts, "--name", "p", "--out", out, "--steps", "5", "--recipe", recipe, "--set", "latent=3",
        "--invariant", "flip, noise", "--alpha", "0.001",
    )  # fmt: skip
    assert done.code == 0, done
    # Brackets in names are no markup.
    assert "Left out [red]part_41.png" in done.said
    assert f"{out}  (digest" in done.out
    manifest = open_bundle(out).manifest
    assert manifest.training.skipped == 1
    # --set overrides the recipe.
    assert [manifest.arguments[k] for k in ("width", "latent", "beta")] == [4, 3, 0.5]
    assert open_bundle(out).spec.invariances == ("flip", "noise")
    # 16 calibration samples support 1 in 17, and no tail.
    assert "A false-alarm rate of 0.001 needs more" in done.said
    assert manifest.alpha == 0.059
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("manifest.json"))


BAD = {
    "no such source": (["{tmp}/nowhere"], ["nowhere"]),
    "an empty folder": (["{tmp}/empty"], ["empty"]),
    "a bad name": (["{source}", "--name", "Bad Name!"], ["Bad Name!", "name"]),
    "an unknown family": (["{source}", "--family", "vea"], ["vea", "vae"]),
    "an unknown argument": (["{source}", "--set", "latnet=3"], ["latnet", "latent"]),
    "an argument out of range": (["{source}", "--set", "beta=-1"], ["beta", "-1"]),
    "an argument of the wrong type": (["{source}", "--set", "latent=big"], ["latent", "big", "whole number"]),
    "no pair": (["{source}", "--set", "latent"], ["latent", "key=value"]),
    "no recipe": (["{source}", "--recipe", "{tmp}/none.toml"], ["none.toml"]),
    "a broken recipe": (["{source}", "--recipe", "{tmp}/bad.toml"], ["bad.toml", "TOML"]),
    "an existing out": (["{source}", "--out", "{tmp}/empty"], ["exists", "empty"]),
    "alpha beyond 1": (["{source}", "--alpha", "1.5"], ["alpha", "1.5"]),
    "alpha nothing": (["{source}", "--alpha", "0"], ["alpha", "0"]),
    "too few": (["{tmp}/few.npz"], ["3"]),
    "nan": (["{tmp}/nan.npz"], ["nan"]),
    "infinity": (["{tmp}/inf.npz", "--missing", "allow"], ["inf"]),
    "objects": (["{tmp}/objects.npz"], ["object"]),
    "no npz": (["{tmp}/torn.npz"], ["torn.npz"]),
    "an unknown kind": (["{source}", "--kind", "sound"], ["sound", "series"]),
    "an unknown invariance": (["{source}", "--invariant", "rotation"], ["rotation", "vector", "noise"]),
    "an option of images": (["{source}", "--size", "32x32"], ["--size", "vector"]),
    "no size": (["{source}", "--size", "big"], ["--size", "big"]),
    "no time": (["{source}", "--max-time", "soon"], ["--max-time", "soon", "10m"]),
    "no missing": (["{source}", "--missing", "maybe"], ["--missing", "maybe", "allow"]),
    "no device": (["{source}", "--device", "tpu"], ["tpu", "cuda"]),
    "no rows": (["{source}", "--rows", "9:3"], ["--rows", "9:3"]),
    "no such array": (["{source}", "--key", "z"], ["z"]),
    "nothing to resume": (["{source}", "--resume", "--out", "{tmp}/x"], ["no interrupted fit", "--resume"]),
    "a learning rate that explodes": (["{source}", "--rate", "1e30", "--out", "{tmp}/x"], ["loss", "--rate"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_answered_with_a_sentence_and_leaves_nothing(refused, source, tmp_path, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("latent = = 3")
    (tmp_path / "torn.npz").write_bytes(source.read_bytes()[:100])
    x = vectors(150, 1)
    np.savez(tmp_path / "few.npz", x=x[:3])
    np.savez(tmp_path / "nan.npz", x=np.where(np.arange(150)[:, None] == 7, np.nan, x).astype(np.float32))
    np.savez(tmp_path / "inf.npz", x=np.where(np.arange(150)[:, None] == 7, np.inf, x).astype(np.float32))
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}] * 50, dtype=object))
    before = sorted(p.name for p in tmp_path.iterdir())
    given, words = BAD[case]
    given = [a.format(tmp=tmp_path, source=source) for a in given]
    named = [] if "--name" in given else ["--name", "toy"]
    refused("fit", *given, *named, "--steps", "20", words=words)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == before
    home = tmp_path / "home"
    assert not home.exists() or not [p for p in home.rglob("*") if p.name.startswith(".fit-") or p.suffix == ".onnx"]


@pytest.mark.parametrize(
    "args",
    [["--name"], ["--steps", "0"], ["--steps", "many"], ["--seed", "-1"], ["--seed", str(2**63)], ["--batch", "1"]],
)
def test_wrong_usage_is_exit_code_2(refused, source, args):
    named = [] if "--name" in args else ["--name", "toy"]
    refused("fit", source, *named, *args, words=[args[0]], code=2)


def test_a_model_needs_a_name(refused, source):
    refused("fit", source, words=["--name"], code=2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (" 2 m ", 120), (None, None)]
)
def test_times(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5s", "10 minutes", "m", "1e3s"])
def test_what_is_no_time(text):
    with pytest.raises(Refusal, match="is not a time"):
        duration(text)


def test_sizes():
    assert [size(t) for t in ("128x96", "64", " 32X16 ", None)] == [(128, 96), (64, 64), (32, 16), None]
    with pytest.raises(Refusal, match="HEIGHTxWIDTH"):
        size("128x")


def test_arguments_by_option_and_recipe(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('latent = 8\nbeta = 2\n[likelihood]\n"" = "laplace"\ncount = "poisson"\n')
    found = arguments(["beta=0.5", "likelihood.code=categorical:3", "variance=fixed", "x=a=b"], recipe)
    assert found == {
        "latent": 8,
        "beta": 0.5,
        "likelihood": "laplace",
        "likelihood.count": "poisson",
        "likelihood.code": "categorical:3",
        "variance": "fixed",
        "x": "a=b",
    }
