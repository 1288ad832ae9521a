"""What `manifest.json` says, as values: one shape for what a fit, an ensemble or half precision wrote.

What does not apply, or was not recorded when a bundle was written, is None. Bundles written before a member was there
lack it and open as well; a member that this version does not know makes a bundle one that it cannot judge.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from vaegis.models.errors import Damaged
from vaegis.models.texts import printable

FORMAT = 2
READABLE = (1, 2)  # formats that open; of the first, nothing but the digest is proven
MANIFEST = "manifest.json"
LIBRARIES = ("vaegis", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")
KINDS: dict[Any, tuple[Any, str]] = {  # annotation -> types of the JSON value, and what they are called
    str: (str, "text"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    dict: (dict, "an object"),
    tuple: (list, "a list"),
}

T = TypeVar("T")


@dataclass(frozen=True)
class SplitSizes:
    """How many clean samples went where."""

    fit: int = 0
    validate: int = 0
    calibrate: int = 0


@dataclass(frozen=True)
class Proof:
    """How far the graph agrees with what it was made of, over `samples` clean samples that it was not fitted on."""

    samples: int
    torch: float | None = None  # largest difference to the training code, as a share of what is allowed
    batch: float | None = None  # the same, of a batch of one to a batch of many
    rank: float | None = None  # of half precision: the least of the terms' rank correlations with single precision
    flips: int | None = None  # of half precision: samples decided differently, all near the threshold


@dataclass(frozen=True)
class Training:
    """What the bundle was fitted on, what it was calibrated on, and how the fit went."""

    digest: str | None = None  # of the clean data it was fitted on; an ensemble's: that it was calibrated on
    samples: int | None = None  # in those data
    skipped: int | None = None  # items of those data that could not be read
    split: SplitSizes | None = None
    calibrate: int | None = None  # clean samples that it was calibrated on
    calibrate_independent: int | None = None  # of these: windows side by side, no copies, or lots
    calibrate_digest: str | None = None  # of the clean data that it was calibrated on
    calibrated_on_data_of: tuple[str, ...] = ()  # members of an ensemble that were fitted on these very data
    group_by: str | None = None  # what kept samples on one side of the split
    seed: int | None = None
    steps: int | None = None  # of the optimiser
    best_step: int | None = None
    stopped: str | None = None  # why the fit ended
    seconds: float | None = None
    parameters: int | None = None
    gate: Proof | None = None


@dataclass(frozen=True)
class Ancestor:
    """A member of an ensemble, as it was when the ensemble was made."""

    name: str  # within the ensemble
    family: str
    digest: str
    lineage: Lineage


@dataclass(frozen=True)
class Lineage:
    """Where a bundle comes from."""

    digest: str | None = None  # of the bundle that it replaces, is in half precision, or calibrates anew
    precision: str | None = None  # float16 where its networks compute in half precision
    members: tuple[Ancestor, ...] = ()  # of an ensemble


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says. Format, digests and files are those of the writing: `write_bundle` sets them."""

    format: int = FORMAT  # of the folder
    digest: str = ""  # sha256 over graphs, calibration, spec and alpha: the bundle's identity
    record_digest: str = ""  # sha256 over all the rest of the manifest, and so over every file
    family: str  # for people: nothing that scores looks at it
    arguments: dict[str, Any]  # the family's constructor arguments
    spec: dict[str, Any]  # see vaegis.models.spec
    evidence: dict[str, str]  # term -> what it means, `score` included
    alpha: float  # false-alarm rate used when none is asked for
    training: Training = field(default_factory=Training)
    lineage: Lineage = field(default_factory=Lineage)
    versions: dict[str, str]  # libraries it was made with
    created: str  # ISO 8601, UTC
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256 of every other file


# Members by the names that they once had.
FORMER: dict[type, dict[str, str]] = {Training: {"data_digest": "digest"}, Lineage: {"parent": "digest"}}


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain JSON values."""
    return asdict(manifest)


def from_json(data: object) -> Manifest:
    """The inverse of `to_json`.

    Raises:
        Damaged: another format version; a member missing, unknown or malformed.
    """
    if not isinstance(data, dict) or not isinstance(data.get("format"), int) or isinstance(data["format"], bool):
        raise Damaged(f"{MANIFEST} states no format version; restore the bundle from where it came.")
    if data["format"] not in READABLE:
        newer = "Upgrade vaegis" if data["format"] > FORMAT else "Fit the model again"
        readable = " and ".join(map(str, READABLE))
        raise Damaged(f"The bundle has format version {data['format']}; this version reads {readable}. {newer}.")
    needed = {f.name for f in fields(Manifest)} - ({"record_digest"} if data["format"] == 1 else set())
    if missing := sorted(needed - set(data)):
        raise Damaged(f"{MANIFEST} lacks {', '.join(missing)}; restore the bundle from where it came.")
    if not isinstance(data["files"], dict) or not isinstance(data["spec"], dict):
        raise Damaged(f"{MANIFEST} lists no files or spec; restore the bundle from where it came.")
    manifest = _record(Manifest, data, "")
    if not 0.0 < manifest.alpha < 1.0:
        raise Damaged(
            f"{MANIFEST} gives alpha as {manifest.alpha:g}, which is no rate between 0 and 1; restore the bundle from "
            "where it came."
        )
    return manifest


def installed_versions(*more: str) -> dict[str, str]:
    """The versions of Python, of vaegis, of what runs graphs, and of more libraries, where they are installed."""
    versions = {"python": platform.python_version()}
    for library in (*LIBRARIES, *more):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _record(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """An object's members as the fields of a dataclass; `where` names it within the manifest."""
    former = FORMER.get(cls, {})
    data = {former.get(name, name): value for name, value in data.items()}
    hints = get_type_hints(cls)
    if unknown := sorted(set(data) - set(hints)):
        what = f"{where}.{unknown[0]}" if where else ", ".join(unknown)
        raise Damaged(f"{MANIFEST} holds {what}, which format version {FORMAT} does not have.")
    members = {n: _value(hints[n], value, f"{where}.{n}" if where else n) for n, value in data.items()}
    try:
        return cls(**members)
    except TypeError as error:  # a member without a default is missing
        raise Damaged(f"{MANIFEST} does not give all of {where}; restore the bundle from where it came.") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """A member's value, if it is of the kind that its annotation names."""
    if isinstance(hint, UnionType):
        if value is None:
            return None
        hint = get_args(hint)[0]
    container, inner = get_origin(hint) or hint, get_args(hint)
    types, noun = KINDS[dict if is_dataclass(container) else container]
    if not isinstance(value, types) or isinstance(value, bool):
        raise Damaged(
            f"{MANIFEST} gives {where} as {value!r:.80}, not as {noun}; restore the bundle from where it came."
        )
    if is_dataclass(container):
        return _record(cast(type, container), value, where)
    if container is tuple:
        return tuple(_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if container is dict and inner[1] is str:
        return {name: _value(str, text, f"{where}.{name}") for name, text in value.items()}
    if container is float and not math.isfinite(value):
        raise Damaged(f"{MANIFEST} gives {where} as {value}, which is no finite number; restore the bundle.")
    return printable(value) if container is str else value
