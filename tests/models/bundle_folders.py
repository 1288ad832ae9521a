"""A small bundle on disk, and what an accident or a forger would do to it."""

import hashlib
import json

import numpy as np

from toy_data import VECTORS, mean_graph
from vaegis.models.bundle import identity, record, write_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.manifest import MANIFEST, Manifest, Training
from vaegis.models.spec import to_json

CALIBRATION = to_bytes(calibrate({"score": np.arange(50.0)}, None, None, (0.0, 1.0)))


def write(path, files=None, **changed):
    contents = {
        "score.onnx": mean_graph(VECTORS),
        "calibration.npz": CALIBRATION,
        "weights.safetensors": b"weights",
        "report/report.html": b"<html>",
    }
    facts = {
        "family": "toy",
        "arguments": {"latent": 3},
        "spec": to_json(VECTORS),
        "evidence": {"score": "mean"},
        "alpha": 0.05,
        "training": Training(steps=3),
        "versions": {"numpy": "2"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return write_bundle(path, contents | (files or {}), Manifest(**(facts | changed)))


def edit(folder, **changed):
    """Changes fields of the manifest and nothing else."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changed))


def relist(folder, **files):
    """Replaces files by others that the manifest then lists, digest and all: what a forger would do."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, raw in files.items():
        path = folder / name.replace("__", "/").replace("_onnx", ".onnx")
        path.write_bytes(raw)
        manifest["files"][path.name] = hashlib.sha256(raw).hexdigest()
    manifest["digest"] = identity(
        manifest["family"], manifest["arguments"], manifest["spec"], manifest["alpha"], manifest["files"]
    )
    manifest["record_digest"] = record(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
