import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from bundle_folders import edit, relist, write

from toy_data import IMAGES, VECTORS, mean_graph
from vaegis.models.bundle import open_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.errors import Conflict, Damaged, NotFound, Refusal
from vaegis.models.manifest import FORMAT, MANIFEST, Training
from vaegis.models.spec import to_json


def test_what_is_written_is_what_is_read(folder):
    opened = open_bundle(folder)
    assert opened.spec == VECTORS
    assert opened.read("weights.safetensors") == b"weights"
    assert opened.read("report/report.html") == b"<html>"
    assert opened.calibration.group(None).terms["score"].values.tolist() == list(range(50))
    assert opened.roi is None
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest == json.loads(json.dumps(dataclasses.asdict(opened.manifest)))
    assert set(manifest["files"]) == {"score.onnx", "calibration.npz", "weights.safetensors", "report/report.html"}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["bundle"]
    with pytest.raises(NotFound, match=r"holds no encoder.onnx; its graphs are score.onnx"):
        opened.read("encoder.onnx")


def test_a_region_of_interest_travels_along(tmp_path):
    mask = np.zeros((16, 16), bool)
    mask[2:5] = True
    np.save(tmp_path / "mask.npy", mask)
    files = {"score.onnx": mean_graph(IMAGES), "roi.npy": (tmp_path / "mask.npy").read_bytes()}
    made = write(tmp_path / "b", files, spec=to_json(IMAGES))
    assert (open_bundle(tmp_path / "b").roi == mask).all()
    assert made.digest != write(tmp_path / "c", {"score.onnx": files["score.onnx"]}, spec=to_json(IMAGES)).digest


def test_the_digest_leaves_out_times_report_and_weights(tmp_path):
    files = {"report/report.html": b"other", "report/more.json": b"{}", "weights.safetensors": b"other"}
    one = write(tmp_path / "a")
    two = write(tmp_path / "b", files, created="2027-01-01T00:00:00+00:00", versions={}, training=Training(steps=4))
    assert one.digest == two.digest
    assert len(one.digest) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"files": {"score.onnx": mean_graph(VECTORS, doc="another")}},
        {"files": {"calibration.npz": to_bytes(calibrate({"score": np.arange(51.0)}, None, None, (0.0, 1.0)))}},
        {"files": {"decoder.onnx": mean_graph(VECTORS)}},
        {"spec": to_json(dataclasses.replace(VECTORS, missing="allow"))},
        {"arguments": {"latent": 4}},
        {"family": "other"},
        {"alpha": 0.01},
    ],
    ids=["graph", "calibration", "another graph", "spec", "arguments", "family", "alpha"],
)
def test_the_digest_covers_what_decides_a_verdict(tmp_path, changed):
    assert write(tmp_path / "a").digest != write(tmp_path / "b", **changed).digest


def test_every_changed_byte_is_noticed(folder):
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        raw = file.read_bytes()
        for at in sorted({*range(0, len(raw), max(1, len(raw) // 40)), len(raw) - 1}):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(Damaged, match=f"{file.name} is not what was written"):
                open_bundle(folder)
        for other in (raw[:-1], raw + b"\0", b""):
            file.write_bytes(other)
            with pytest.raises(Damaged, match=file.name):
                open_bundle(folder)
        file.write_bytes(raw)
    open_bundle(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": "0" * 64},
        {"alpha": 0.9},
        {"arguments": {"latent": 4}},
        {"family": "vae"},
        {"spec": to_json(dataclasses.replace(VECTORS, columns=("f", "e", "d", "c", "b", "a")))},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_changed_manifest_is_noticed(folder, changed):
    edit(folder, **changed)
    with pytest.raises(Damaged, match=r"digest in manifest\.json does not match"):
        open_bundle(folder)


def test_a_file_changed_after_opening_is_noticed_when_it_is_read(folder):
    opened = open_bundle(folder)
    (folder / "weights.safetensors").write_bytes(b"w3ights")
    with pytest.raises(Damaged, match="weights.safetensors"):
        opened.read("weights.safetensors")


@pytest.mark.parametrize("name", ["score.onnx", "report/report.html"])
def test_a_missing_file_is_named_without_its_folder(folder, name):
    (folder / name).unlink()
    with pytest.raises(Damaged, match=f"lacks '{name}'") as refused:
        open_bundle(folder)
    assert str(folder) not in str(refused.value)


@pytest.mark.parametrize("name", ["notes.txt", "report/more.html", ".hidden", "score.onnx.data"])
def test_a_file_that_nobody_lists_is_named(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(Damaged, match=f"holds {name}"):
        open_bundle(folder)


def test_links_are_refused(folder, tmp_path):
    outside = tmp_path / "elsewhere"
    shutil.copytree(folder / "report", outside)
    shutil.copy(folder / "score.onnx", outside)
    (folder / "score.onnx").unlink()
    (folder / "score.onnx").symlink_to(outside / "score.onnx")
    with pytest.raises(Damaged, match=r"holds 'score\.onnx', which is a link"):
        open_bundle(folder)
    (folder / "score.onnx").unlink()
    shutil.copy(outside / "score.onnx", folder)
    shutil.rmtree(folder / "report")
    (folder / "report").symlink_to(outside)
    with pytest.raises(Damaged, match="holds 'report', which is a link"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../secret", "report/../../secret", "{absolute}", "a\0b", "", "report"])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    secret = folder.parent / "secret"
    secret.write_bytes(b"x")
    name = name.format(absolute=secret)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit(folder, files=files | {name: hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(Damaged, match="lies outside|lacks"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": FORMAT + 1}, f"format version {FORMAT + 1}; this version reads 1 and {FORMAT}. Upgrade"),
        ({"format": 0}, "Fit the model again"),
        ({"format": "1"}, "states no format version"),
        ({"signature": "x"}, "holds signature, which format version 2 does not have"),
        ({"files": ["score.onnx"]}, "lists no files"),
        ({"files": {}}, r"lists no score\.onnx"),
        ({"spec": {"kind": "vector"}}, "lacks columns"),
    ],
)
def test_other_manifests_are_refused(folder, changed, said):
    edit(folder, **changed)
    with pytest.raises(Damaged, match=said):
        open_bundle(folder)


def test_a_manifest_without_a_field_is_refused(folder):
    told = json.loads((folder / MANIFEST).read_text())
    del told["evidence"], told["alpha"]
    (folder / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(Damaged, match="lacks alpha, evidence"):
        open_bundle(folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_none_is_refused(folder, raw):
    (folder / MANIFEST).write_bytes(raw)
    with pytest.raises(Damaged, match=r"manifest\.json"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"training": {"steps": 4}},
        {"lineage": {"digest": "ab" * 32}},
        {"created": "2020-01-01T00:00:00+00:00"},
        {"evidence": {"score": "how clean a sample is"}},
        {"versions": {"numpy": "1"}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_the_second_digest_covers_what_the_first_leaves_out(folder, changed):
    edit(folder, **changed)
    with pytest.raises(Damaged, match=r"record_digest in manifest\.json does not match"):
        open_bundle(folder)


def test_the_second_digest_covers_weights_and_report(folder):
    told = json.loads((folder / MANIFEST).read_text())
    (folder / "weights.safetensors").write_bytes(b"others")
    edit(folder, files=told["files"] | {"weights.safetensors": hashlib.sha256(b"others").hexdigest()})
    with pytest.raises(Damaged, match="record_digest"):
        open_bundle(folder)


def test_a_bundle_of_the_first_format_opens_with_a_warning_and_keeps_its_digest(folder):
    assert open_bundle(folder).warnings == ()
    told = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({k: v for k, v in told.items() if k != "record_digest"} | {"format": 1}))
    opened = open_bundle(folder)
    (warning,) = opened.warnings
    assert "format 1" in warning and "Fit the model again" in warning
    assert opened.digest == told["digest"]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1e300])
def test_a_rate_that_is_none_is_refused(folder, alpha):
    edit(folder, alpha=alpha)
    with pytest.raises(Damaged, match="alpha as .*no rate between 0 and 1"):
        open_bundle(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(folder, number):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"alpha": 0.05', f'"alpha": {number}'))
    with pytest.raises(Damaged, match="no finite number"):
        open_bundle(folder)


def test_calibration_and_manifest_name_the_same_evidence(folder):
    calibration = calibrate({"score": np.arange(50.0), "kl": np.arange(50.0)}, None, None, (0.0, 1.0))
    relist(folder, **{"calibration.npz": to_bytes(calibration)})
    with pytest.raises(Damaged, match=r"calibration\.npz has the evidence 'kl' and manifest\.json does not"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["score.onnx", "manifest.json", "report/stray"])
def test_a_pipe_in_the_folder_holds_nobody_up(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(Damaged, match=f"holds '{name}', which is a pipe"):
        open_bundle(folder)


def test_a_file_too_large_for_a_bundle_is_refused_unread(folder):
    os.truncate(folder / "score.onnx", 2**31 + 1)
    with pytest.raises(Damaged, match=r"score\.onnx is larger than 2147483648 bytes"):
        open_bundle(folder)


def test_a_manifest_too_large_is_refused_unread(folder):
    os.truncate(folder / MANIFEST, 2**30)
    with pytest.raises(Damaged, match=r"manifest\.json is larger than"):
        open_bundle(folder)


def test_a_folder_without_end_is_refused(folder):
    (folder / "/".join("abcdefghijkl")).mkdir(parents=True)
    with pytest.raises(Damaged, match="levels of folders"):
        open_bundle(folder)


def test_texts_of_a_manifest_hold_no_control_characters(tmp_path):
    made = write(tmp_path / "b", family="\x1b[2J\x1b]0;x\x07evil", evidence={"score": "a\u202eb\nc\x9b1m"})
    opened = open_bundle(made.path)
    assert opened.manifest.family == "[2J]0;xevil"
    assert opened.manifest.evidence == {"score": "ab c1m"}
    assert opened.digest == made.digest


def test_folders_that_are_no_bundle(tmp_path):
    with pytest.raises(NotFound, match="no bundle at .*nowhere"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(NotFound, match=r"holds no manifest\.json"):
        open_bundle(tmp_path)


def test_an_existing_folder_is_never_touched(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(Conflict, match="exists already"):
        write(folder, alpha=0.2)
    (folder.parent / "file").write_text("mine")
    with pytest.raises(Conflict, match="file exists already"):
        write(folder.parent / "file")
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["bundle", "file"]


def test_a_parent_that_is_a_file_is_not_called_an_existing_bundle(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Refusal, match="cannot be written to .*file/bundle"):
        write(tmp_path / "file" / "bundle")


def test_a_disk_that_fills_up_leaves_nothing_behind(folder):
    """A real limit on file size in a process of its own; EFBIG stands in for ENOSPC."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from bundle_folders import write
        from vaegis.models.errors import Refusal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write(Path(sys.argv[1]), {"weights.safetensors": bytes(200_000)})
        except Refusal as refusal:
            print(refusal)
    """)
    here = os.path.dirname(__file__)
    told = subprocess.run(
        [sys.executable, "-c", script, str(folder.parent / "full"), here],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(here), os.path.join(os.getcwd(), "src")])),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written to" in told.stdout
    assert "File too large" in told.stdout
    assert sorted(p.name for p in folder.parent.iterdir()) == ["bundle"]
    open_bundle(folder)
