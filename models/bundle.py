"""The exported folder: manifest, graphs, calibration, weights, report.

A bundle is never altered. `open_bundle` verifies every byte against the manifest before anything is used, and refuses
unknown format versions, external ONNX data and files it does not list; `write_bundle` builds the folder aside and
renames it, so that a bundle is either whole or not there. The digest covers what decides a verdict (graphs,
calibration, spec, the rate used when none is asked for) and nothing that varies between runs (times, report, machine).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models import calibration as calibrations
from vaegis.models import manifest as manifests
from vaegis.models import spec as specs
from vaegis.models.calibration import Calibration
from vaegis.models.errors import Conflict, Damaged, NotFound, Refusal
from vaegis.models.manifest import FORMAT, MANIFEST, Manifest
from vaegis.models.outputs.atomic import atomic_folder, reason
from vaegis.models.spec import InputSpec

SCORE, ENCODER, DECODER = "score.onnx", "encoder.onnx", "decoder.onnx"
SAMPLER, STEP = "sampler.onnx", "step.onnx"  # of families that generate without a decoder
CALIBRATION, WEIGHTS, ROI = "calibration.npz", "weights.safetensors", "roi.npy"
NEEDED = (SCORE, CALIBRATION)
MANIFEST_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Files are read again, and verified again, when they are asked for."""

    path: Path
    manifest: Manifest
    spec: InputSpec

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def read(self, name: str) -> bytes:
        """A file's verified bytes.

        Raises:
            NotFound: the bundle has no such file.
            Damaged: its bytes are not those that were written.
        """
        if name not in self.manifest.files:
            graphs = ", ".join(sorted(n for n in self.manifest.files if n.endswith(".onnx")))
            raise NotFound(f"The bundle of family {self.manifest.family} holds no {name}; its graphs are {graphs}.")
        return _verified(self.path, name, self.manifest.files[name])

    @cached_property
    def calibration(self) -> Calibration:
        return calibrations.from_bytes(self.read(CALIBRATION))

    @cached_property
    def roi(self) -> NDArray[np.bool_] | None:
        """The region-of-interest mask, (height, width) of the whole image, or None."""
        if ROI not in self.manifest.files:
            return None
        return np.asarray(np.load(io.BytesIO(self.read(ROI)), allow_pickle=False), np.bool_)


def open_bundle(path: Path | str) -> Bundle:
    """Verifies the folder and returns it.

    Raises:
        NotFound: no such folder, or no manifest in it.
        Damaged: a changed, missing or unlisted file, external data in a graph, an unknown format version.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFound(f"There is no bundle at {path}; give the folder that `vaegis fit --out` wrote.")
    source = path / MANIFEST
    if not source.is_file():
        raise NotFound(f"{path} holds no {MANIFEST}, so it is not a bundle; give the folder that `vaegis fit` wrote.")
    manifest = _manifest(source)
    spec = specs.from_json(manifest.spec)
    for name in NEEDED:
        if name not in manifest.files:
            raise Damaged(f"The bundle's manifest lists no {name}; restore the bundle from where it came.")
    for name, digest in manifest.files.items():
        raw = _verified(path, name, digest)
        if name.endswith(".onnx"):
            refuse_external_data(name, raw)
    stray = sorted(set(_files(path)) - set(manifest.files) - {MANIFEST})
    if stray:
        raise Damaged(
            f"The bundle holds {stray[0]}, which its manifest does not list; remove it or restore the bundle."
        )
    if identity(manifest.family, manifest.arguments, manifest.spec, manifest.alpha, manifest.files) != manifest.digest:
        raise Damaged(f"The digest in {MANIFEST} does not match the files; restore the bundle from where it came.")
    return Bundle(path=path, manifest=manifest, spec=spec)


def write_bundle(path: Path, files: dict[str, bytes], manifest: Manifest) -> Bundle:
    """Writes a bundle to a folder that must not exist, whole or not at all.

    Args:
        files: relative path -> bytes, manifest excluded.
        manifest: what it says of itself; its format, digest and files are computed here.

    Raises:
        Conflict: the folder exists.
        Refusal: it cannot be written (disk full, no permission); nothing is left behind.
    """
    if path.exists():
        raise Conflict(f"{path} exists already; a bundle is never altered. Name another folder or remove that one.")
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in sorted(files.items())}
    digest = identity(manifest.family, manifest.arguments, manifest.spec, manifest.alpha, digests)
    manifest = replace(manifest, format=FORMAT, digest=digest, files=digests)
    text = (json.dumps(manifests.to_json(manifest), indent=2, allow_nan=False) + "\n").encode()
    try:
        with atomic_folder(path) as aside:
            for name, raw in {**files, MANIFEST: text}.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(raw)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and path.exists():
            raise Conflict(f"{path} exists already; name another folder or remove that one.") from error
        raise Refusal(
            f"The bundle cannot be written to {path}: {reason(error)}. Free space there or name another folder."
        ) from error
    return Bundle(path=path, manifest=manifest, spec=specs.from_json(manifest.spec))


def identity(family: str, arguments: dict[str, Any], spec: dict[str, Any], alpha: float, files: dict[str, str]) -> str:
    """The bundle's digest: sha256 over graphs, calibration, spec and alpha."""
    deciding = {n: d for n, d in files.items() if n.endswith(".onnx") or n in (CALIBRATION, ROI)}
    facts = {
        "format": FORMAT,
        "family": family,
        "arguments": arguments,
        "spec": spec,
        "alpha": alpha,
        "files": deciding,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def refuse_external_data(name: str, raw: bytes) -> None:
    """A graph whose weights lie in another file could be made to read any file of the machine.

    Raises:
        Damaged: external data, or bytes that are no graph.
    """
    import onnx  # 25 MB that a reader of manifests alone should not pay
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise Damaged(f"{name} is not an ONNX graph ({error}); restore the bundle from where it came.") from error
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Damaged(
                f"{name} keeps tensor {tensor.name!r} in an external file; a bundle's graphs hold their data."
            )


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model: initialisers, attributes, sub-graphs, functions."""
    graphs, nodes = [model.graph], [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _manifest(path: Path) -> Manifest:
    if path.stat().st_size > MANIFEST_LIMIT:
        raise Damaged(f"{MANIFEST} is larger than {MANIFEST_LIMIT} bytes; it is not one that this product wrote.")
    try:
        return manifests.from_json(json.loads(path.read_text("utf-8")))
    except (ValueError, OSError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error}); restore the bundle from where it came.") from error


def _verified(folder: Path, name: str, digest: str) -> bytes:
    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or file.is_symlink():
        raise Damaged(f"The bundle lists {name}, which lies outside its folder.")
    try:
        raw = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise Damaged(f"The bundle lacks {name!r} ({why}); restore it from where it came.") from error
    if hashlib.sha256(raw).hexdigest() != digest:
        raise Damaged(f"{name} is not what was written: its sha256 differs from the manifest. Restore the bundle.")
    return raw


def _files(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        if file.is_file() or file.is_symlink():
            yield file.relative_to(folder).as_posix()
