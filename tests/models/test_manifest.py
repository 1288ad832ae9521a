"""Manifests as they were written by earlier versions, by a fit, an ensemble and half precision, and malformed ones."""

import json
from dataclasses import replace

import pytest

from toy_bundles import VECTOR, toy_bundle, toy_manifest
from vaegis.models.bundle import MANIFEST, open_bundle
from vaegis.models.errors import Damaged
from vaegis.models.manifest import (
    Ancestor,
    Lineage,
    Proof,
    SplitSizes,
    Training,
    from_json,
    installed_versions,
    to_json,
)

FIT = {
    "digest": "1c" * 32, "samples": 1981, "skipped": 0, "split": {"fit": 722, "validate": 381, "calibrate": 722},
    "calibrate_independent": 38, "group_by": None, "seed": 0, "steps": 40, "best_step": 40, "stopped": "steps",
    "seconds": 1.6, "parameters": 23563, "gate": {"torch": 0.045, "batch": 0.004, "samples": 722},
}  # fmt: skip


@pytest.fixture
def rewritten(tmp_path):
    """`rewritten(training=..., lineage=...)`: a toy's manifest of format 1, opened with these members instead."""
    folder = toy_bundle(tmp_path / "toy").path
    written = json.loads((folder / MANIFEST).read_text()) | {"format": 1}
    del written["record_digest"]

    def run(**members):
        (folder / MANIFEST).write_text(json.dumps(written | members))
        return open_bundle(folder).manifest

    return run


def test_what_a_fit_wrote_earlier_opens(rewritten):
    manifest = rewritten(training=FIT, lineage={"digest": "ef" * 32})
    assert manifest.training == Training(
        digest="1c" * 32,
        samples=1981,
        skipped=0,
        split=SplitSizes(fit=722, validate=381, calibrate=722),
        calibrate_independent=38,
        seed=0,
        steps=40,
        best_step=40,
        stopped="steps",
        seconds=1.6,
        parameters=23563,
        gate=Proof(samples=722, torch=0.045, batch=0.004),
    )
    assert manifest.lineage == Lineage(digest="ef" * 32)


def test_what_an_ensemble_wrote_earlier_opens(rewritten):
    training = {
        "digest": "1c" * 32, "samples": 200, "skipped": 0, "split": {"calibrate": 200}, "calibrate_independent": 50,
        "calibrated_on_data_of": ["one"],
    }  # fmt: skip
    inner = {"name": "a", "family": "vae", "digest": "aa" * 32, "lineage": {"digest": None}}
    lineage = {"digest": None, "members": [{"name": "one", "family": "ensemble", "digest": "bb" * 32,
                                            "lineage": {"digest": None, "members": [inner]}}]}  # fmt: skip
    manifest = rewritten(training=training, lineage=lineage)
    assert manifest.training.split == SplitSizes(calibrate=200)
    assert manifest.training.calibrated_on_data_of == ("one",)
    (member,) = manifest.lineage.members
    assert (member.name, member.lineage.members) == ("one", (Ancestor("a", "vae", "aa" * 32, Lineage()),))


def test_what_half_precision_wrote_earlier_opens(rewritten):
    manifest = rewritten(training=FIT | {"calibrate": 400}, lineage={"digest": "ef" * 32, "precision": "float16"})
    assert (manifest.training.calibrate, manifest.training.steps) == (400, 40)
    assert manifest.lineage == Lineage(digest="ef" * 32, precision="float16")


def test_members_are_known_by_their_former_names(rewritten):
    manifest = rewritten(training={"data_digest": "1c" * 32}, lineage={"parent": "ef" * 32})
    assert (manifest.training.digest, manifest.lineage.digest) == ("1c" * 32, "ef" * 32)


def test_a_manifest_that_says_nothing_of_its_training_opens(rewritten):
    manifest = rewritten(training={}, lineage={})
    assert (manifest.training, manifest.lineage) == (Training(), Lineage())


def test_what_is_written_reads_back_the_same():
    manifest = replace(
        toy_manifest(VECTOR),
        spec={"kind": "vector"},
        training=Training(split=SplitSizes(1, 2, 3), calibrated_on_data_of=("a",), gate=Proof(samples=3, flips=1)),
        lineage=Lineage(members=(Ancestor("a", "vae", "aa" * 32, Lineage(precision="float16")),)),
    )
    assert from_json(json.loads(json.dumps(to_json(manifest)))) == manifest


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"training": {"mood": "good"}}, r"holds training\.mood, which format version 2 does not have"),
        ({"training": {"samples": "many"}}, r"gives training\.samples as 'many', not as a whole number"),
        ({"training": {"samples": True}}, r"gives training\.samples as True"),
        ({"training": {"seconds": [1]}}, r"gives training\.seconds as \[1\], not as a number"),
        ({"training": {"split": {"test": 3}}}, r"holds training\.split\.test"),
        ({"training": {"split": 3}}, r"gives training\.split as 3, not as an object"),
        ({"training": {"gate": {"torch": 0.1}}}, r"does not give all of training\.gate"),
        (
            {"training": {"calibrated_on_data_of": "one"}},
            r"gives training\.calibrated_on_data_of as 'one', not as a list",
        ),
        ({"training": ["digest"]}, r"gives training as \['digest'\], not as an object"),
        ({"training": None}, r"gives training as None, not as an object"),
        ({"lineage": {"members": [{"name": "one"}]}}, r"does not give all of lineage\.members\[0\]"),
        ({"lineage": {"digest": 7}}, r"gives lineage\.digest as 7, not as text"),
        ({"alpha": "0.05"}, r"gives alpha as '0\.05', not as a number"),
        ({"evidence": {"score": 1}}, r"gives evidence\.score as 1, not as text"),
        ({"arguments": []}, r"gives arguments as \[\], not as an object"),
    ],
)
def test_malformed_members_are_named(rewritten, members, words):
    with pytest.raises(Damaged, match=words):
        rewritten(**members)


def test_a_lineage_without_end_is_refused(rewritten, tmp_path):
    rewritten()
    file = tmp_path / "toy" / MANIFEST
    deep = '{"members": [{"name": "a", "family": "f", "digest": "d", "lineage": ' * 5000
    raw = json.dumps(json.loads(file.read_text()) | {"lineage": "HERE"}).replace('"HERE"', deep + "{}" + "}]}" * 5000)
    file.write_text(raw)
    with pytest.raises(Damaged, match="cannot be read"):
        open_bundle(tmp_path / "toy")


def test_versions_are_those_that_are_installed():
    versions = installed_versions("torch", "no-such-library")
    assert {"python", "vaegis", "onnx", "numpy", "torch"} <= set(versions)
    assert "no-such-library" not in versions
