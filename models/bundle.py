"""The exported folder: manifest, graphs, calibration, weights, report.

A bundle is never altered. `open_bundle` verifies every byte against the manifest before anything is used, and refuses
unknown format versions, external ONNX data and files it does not list; `write_bundle` builds the folder aside and
renames it, so that a bundle is either whole or not there. The digest covers what decides a verdict (graphs,
calibration, spec, the rate used when none is asked for) and nothing that varies between runs (times, report, machine);
a second one, `record_digest`, covers all the rest.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models import calibration as calibrations
from vaegis.models import manifest as manifests
from vaegis.models import spec as specs
from vaegis.models.bundle_files import digest_of, list_files, read_file
from vaegis.models.calibration import ALL, Calibration
from vaegis.models.errors import Conflict, Damaged, NotFound, Refusal
from vaegis.models.manifest import FORMAT, MANIFEST, Manifest
from vaegis.models.outputs.atomic import atomic_folder, reason
from vaegis.models.spec import InputSpec

SCORE, ENCODER, DECODER = "score.onnx", "encoder.onnx", "decoder.onnx"
SAMPLER, STEP = "sampler.onnx", "step.onnx"  # of families that generate without a decoder
CALIBRATION, WEIGHTS, ROI = "calibration.npz", "weights.safetensors", "roi.npy"
NEEDED = (SCORE, CALIBRATION)
MANIFEST_LIMIT = 16 * 2**20
IDENTITY = 1  # version of what the digest is computed over; a bundle that decides the same keeps its digest
RECORDED = 2  # format from which on a second digest covers all the rest


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Files are read again, and verified again, when they are asked for."""

    path: Path
    manifest: Manifest
    spec: InputSpec

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever uses it should know; nothing that keeps it from deciding as it should."""
        if self.manifest.format >= RECORDED:
            return ()
        return (
            f"The bundle is of format {self.manifest.format}: nothing proves what it says of its training, nor its "
            "report and weights. Fit the model again to have them covered.",
        )

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
        Damaged: a changed, missing or unlisted file, what is no file, external data in a graph, a calibration that is
            none, an unknown format version.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFound(f"There is no bundle at {path}; give the folder that `vaegis fit --out` wrote.")
    sizes = list_files(path)
    if MANIFEST not in sizes:
        raise NotFound(f"{path} holds no {MANIFEST}, so it is not a bundle; give the folder that `vaegis fit` wrote.")
    data = _manifest(path)
    manifest = manifests.from_json(data)
    spec = specs.from_json(manifest.spec)
    for name in NEEDED:
        if name not in manifest.files:
            raise Damaged(f"The bundle's manifest lists no {name}; restore the bundle from where it came.")
    for name, digest in manifest.files.items():
        if name.endswith(".onnx"):
            refuse_external_data(name, _verified(path, name, digest))
        else:
            _check(name, digest_of(path, name), digest)
    stray = sorted(set(sizes) - set(manifest.files) - {MANIFEST})
    if stray:
        raise Damaged(
            f"The bundle holds {stray[0]}, which its manifest does not list; remove it or restore the bundle."
        )
    # Over the texts as they are written, not as they are shown.
    if identity(data["family"], manifest.arguments, manifest.spec, manifest.alpha, manifest.files) != manifest.digest:
        raise Damaged(f"The digest in {MANIFEST} does not match the files; restore the bundle from where it came.")
    if manifest.format >= RECORDED and record(data) != manifest.record_digest:
        raise Damaged(
            f"The record_digest in {MANIFEST} does not match what it says of the training, or the files; restore the "
            "bundle from where it came."
        )
    bundle = Bundle(path=path, manifest=manifest, spec=spec)
    _check_terms(bundle.calibration, manifest)
    return bundle


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
    manifest = replace(manifest, record_digest=record(manifests.to_json(manifest)))
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
    return _digest(
        {
            "format": IDENTITY,
            "family": family,
            "arguments": arguments,
            "spec": spec,
            "alpha": alpha,
            "files": deciding,
        }
    )


def record(manifest: Mapping[str, Any]) -> str:
    """The second digest: sha256 over all that a manifest says, the first digest and every file's included."""
    return _digest({name: value for name, value in manifest.items() if name != "record_digest"})


def _digest(facts: Mapping[str, Any]) -> str:
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


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_file(folder, MANIFEST, MANIFEST_LIMIT).decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error}); restore the bundle from where it came.") from error
    if not isinstance(data, dict):
        raise Damaged(f"{MANIFEST} is no JSON object; restore the bundle from where it came.")
    return data


def _no_number(text: str) -> None:
    raise ValueError(f"it holds {text}, which is no finite number")


def _check_terms(calibration: Calibration, manifest: Manifest) -> None:
    terms = set(calibration.groups[ALL].terms)
    if other := sorted(terms ^ set(manifest.evidence)):
        where, lacking = (CALIBRATION, MANIFEST) if other[0] in terms else (MANIFEST, CALIBRATION)
        raise Damaged(
            f"{where} has the evidence {other[0]!r:.80} and {lacking} does not; restore the bundle from where it came."
        )


def _verified(folder: Path, name: str, digest: str) -> bytes:
    raw = read_file(folder, name)
    _check(name, hashlib.sha256(raw).hexdigest(), digest)
    return raw


def _check(name: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise Damaged(f"{name} is not what was written: its sha256 differs from the manifest. Restore the bundle.")
