"""A fit judges what its model generates, and says so in the report."""

import json

import numpy as np
import pytest

from toy_data import vectors


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "clean.npy", vectors(260, 1))
    return tmp_path / "clean.npy"


FIT = ("--name", "x", "--steps", "30", "--set", "width=8", "--device", "cpu", "--alpha", "0.1")


def test_the_report_holds_it_unless_declined(vaegis, source, tmp_path):
    assert vaegis("fit", source, *FIT, "--out", tmp_path / "b").code == 0
    found = json.loads((tmp_path / "b" / "report" / "report.json").read_text())["generation"]
    assert found["samples"] > 60 and "small VAE" in found["features"]
    assert 0 <= found["generated"]["precision"] <= 1 and found["clean"]["coverage"] > 0.5
    assert "Generated samples" in (tmp_path / "b" / "report" / "report.html").read_text()
    assert vaegis("fit", source, *FIT, "--no-generation", "--out", tmp_path / "c").code == 0
    assert json.loads((tmp_path / "c" / "report" / "report.json").read_text())["generation"] is None


def test_a_network_that_cannot_be_used_is_refused_before_the_fit(refused, source, tmp_path):
    (tmp_path / "net.onnx").write_text("nothing")
    for network, words in (("net.onnx", ["no ONNX network"]), ("nosuch.onnx", ["cannot be read"])):
        refused("fit", source, *FIT, "--out", tmp_path / "b", "--features", tmp_path / network, words=words)
    assert not (tmp_path / "b").exists()
