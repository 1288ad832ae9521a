"""`vaegis fit` with several families, and with a sweep."""

import json
import re

import numpy as np
import pytest

from toy_data import defective, vectors
from vaegis.models.bundle import open_bundle
from vaegis.models.errors import Refusal
from vaegis.service.cli.several import grid


@pytest.fixture
def source(tmp_path):
    np.savez(tmp_path / "clean.npz", x=vectors(150, 1))
    label = np.repeat([0, 1], 20)
    np.savez(tmp_path / "test.npz", x=np.concatenate([vectors(20, 3), defective("vector", 20)]), y=label)
    return tmp_path / "clean.npz"


def test_two_families_are_registered_and_compared(vaegis, source, tmp_path):
    done = vaegis(
        "fit", source, "--name", "rows", "--family", "pca,mixture", "--test", tmp_path / "test.npz",
        "--labels", "key:y", "--alpha", "0.1", "--device", "cpu", "--no-generation",
    )  # fmt: skip
    assert done.code == 0, done
    assert "rows-pca version 1, now its champion" in done.out
    assert "rows-mixture version 1, now its champion" in done.out
    table = [line for line in done.out.splitlines() if "│" in line]
    assert [re.findall(r"\w+", line)[0] for line in table] == ["pca", "mixture"]
    page = tmp_path / "home" / "comparisons" / "rows" / "compare.html"
    assert f"page: {page}" in done.out
    assert page.read_text("utf-8").lower().startswith("<!doctype html")
    figures = json.loads(page.with_suffix(".json").read_text("utf-8"))
    assert [f["family"] for f in figures["families"]] == ["pca", "mixture"]
    assert all(f["auroc"] > 0.9 and f["why"] is None for f in figures["families"])
    assert vaegis("score", source, "--model", "rows-mixture").code == 0
    assert not list((tmp_path / "home").glob(".fit-*")), "nothing half made is left"


def test_a_sweep_keeps_the_chosen_one(vaegis, source, tmp_path):
    out = tmp_path / "made" / "bundle"
    done = vaegis(
        "fit", source, "--name", "rows", "--family", "pca", "--sweep", "latent=1,2", "--out", out, "--alpha", "0.1",
        "--device", "cpu", "--no-generation",
    )  # fmt: skip
    assert done.code == 0, done
    assert "chose latent=2: the first within one standard error of the best" in done.said
    assert f"{out}  (digest" in done.out
    assert open_bundle(out).manifest.arguments["latent"] == 2
    assert sorted(p.name for p in out.parent.iterdir()) == ["bundle"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--family", "pca,vea"], ["no family 'vea'", "the families are", "or all"]),
        (["--family", "pca,pca"], ["pca is named twice"]),
        (["--family", ","], ["no family ''"]),
        (["--family", "pca,vae", "--sweep", "latent=1,2"], ["--sweep takes one family"]),
        (["--family", "pca,vae", "--resume"], ["--resume goes on with one fit"]),
        (["--family", "pca,vae", "--test", "t.npz"], ["--test and --labels go together"]),
        (["--family", "pca,vae", "--labels", "key:y"], ["--test and --labels go together"]),
        (["--family", "pca,vae", "--test", "nowhere.npz", "--labels", "key:y"], ["nowhere.npz"]),
        (["--test", "t.npz", "--labels", "key:y"], ["--test compares several families", "vaegis evaluate"]),
        (["--family", "pca,mixture", "--set", "beta=2"], ["None of the families pca, mixture", "'beta'"]),
        (["--family", "pca", "--sweep", "latent"], ["--sweep latent is not KEY=A,B,C"]),
        (["--family", "pca", "--sweep", "latent=2"], ["needs two values or more"]),
        (["--family", "pca", "--sweep", "latent=2,2"], ["names a value twice"]),
        (["--family", "pca", "--sweep", "latent=1,2", "--sweep", "latent=3,4"], ["names latent twice"]),
        (["--family", "pca", "--sweep", "likelihood=a,b"], ["changes what is measured"]),
        (["--family", "pca", "--sweep", "nope=1,2"], ["no argument 'nope'", "latent, share, resolution"]),
        (["--family", "nope", "--sweep", "latent=1,2"], ["no family 'nope'"]),
    ],
)
def test_what_cannot_be(refused, source, tmp_path, given, words):
    refused("fit", source, "--name", "rows", *given, "--out", tmp_path / "made", words=words)
    assert not (tmp_path / "made").exists()
    assert not list(tmp_path.glob(".*")), "nothing half made is left"


def test_a_folder_that_exists_and_a_name_that_becomes_too_long(refused, source, tmp_path):
    (tmp_path / "made").mkdir()
    refused(
        "fit", source, "--name", "rows", "--family", "pca,vae", "--out", tmp_path / "made", words=["exists already"]
    )
    refused("fit", source, "--name", "r" * 60, "--family", "pca,vae", words=["r" * 60 + "-pca"])


def test_a_grid_is_every_combination():
    assert grid(["latent=8, 16", "beta=0.5,1"]) == [
        {"latent": 8, "beta": 0.5},
        {"latent": 8, "beta": 1},
        {"latent": 16, "beta": 0.5},
        {"latent": 16, "beta": 1},
    ]
    assert grid(["covariance=full,tied"]) == [{"covariance": "full"}, {"covariance": "tied"}]
    with pytest.raises(Refusal, match="--sweep =1,2 is not KEY"):
        grid(["=1,2"])
