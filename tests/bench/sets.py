"""The data sets and the protocol of each: what is fitted, what is scored, what is clean.

The data are not part of this repository. They lie in `../shared/data` beside the checkout, or in the folder that the
environment variable VAEGIS_DATA names; its README tells where they come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.inputs import InputOptions
from vaegis.models.sources import SourceOptions
from vaegis.models.spec import Kind

REPOSITORY = Path(__file__).resolve().parents[2]

TEP_FAULTS = (1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21)
TEP_ROWS = 960  # of each test file
TEP_ONSET = 160  # clean rows before a fault
SKAB_FIT = 400  # rows of each file that are fitted and calibrated on

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Data:
    """One part of a set: what `vaegis fit` and then `vaegis score` are given."""

    clean: Arrays | Path  # arrays of the .npz that is fitted, `x` and perhaps groups; or a file
    test: Arrays | Path
    label: NDArray[np.int8]  # of test sample i of an array, or of row i of a file: 0 = clean, 1 = anomaly
    reading: SourceOptions = field(default_factory=SourceOptions)  # of the clean source
    scoring: SourceOptions = field(default_factory=SourceOptions)  # of the test source
    shaping: InputOptions = field(default_factory=InputOptions)


@dataclass(frozen=True)
class Protocol:
    """How a set is measured."""

    title: str  # for tables
    kind: Kind  # of input, which families may not take
    names: Callable[[Path], Sequence[str]]  # parts, given the data folder; none where the set is absent
    small: tuple[str, ...] | None  # parts of the small panel; None takes all
    load: Callable[[Path, str], Data]
    peer: str = ""  # key in peers.json, {} = the part
    reach: float | None = None  # AUROC that must be reached (F1 for SKAB)
    not_exchangeable: str = ""  # why clean test samples are not like clean training samples, where they are not


def data_folder() -> Path:
    """Where the data are, or should be."""
    given = os.environ.get("VAEGIS_DATA")
    return Path(given) if given else REPOSITORY.parent / "shared" / "data"


def halves(label: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples to fit on, and to test on: half of the clean ones, drawn at random, then the rest with all anomalies."""
    good = np.random.default_rng(0).permutation(np.flatnonzero(label == 0))
    half = len(good) // 2
    return good[:half], np.concatenate([good[half:], np.flatnonzero(label != 0)])


def _there(name: str, *parts: str) -> Callable[[Path], Sequence[str]]:
    return lambda root: parts if (root / name).exists() else ()


def _fashion(root: Path, part: str) -> Data:
    with np.load(root / "fashion_mnist.npz") as data:
        chosen = data["x_train"][data["y_train"] == int(part)]
        return Data({"x": chosen}, {"x": data["x_test"]}, (data["y_test"] != int(part)).astype(np.int8))


def _two_products(root: Path, part: str) -> Data:
    """Shirts, which differ much, and sneakers, which differ little; only clean ones are tested."""
    named = {6: "shirt", 7: "sneaker"}
    with np.load(root / "fashion_mnist.npz") as data:
        fit = np.concatenate([np.flatnonzero(data["y_train"] == c)[:3000] for c in named])
        test = np.flatnonzero(np.isin(data["y_test"], list(named)))
        return Data(
            {"x": data["x_train"][fit], "product": np.array([named[c] for c in data["y_train"][fit].tolist()])},
            {"x": data["x_test"][test], "product": np.array([named[c] for c in data["y_test"][test].tolist()])},
            np.zeros(len(test), np.int8),
            SourceOptions(calibrate_by="product"),
        )


def elpv_split(prob: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clean cells (prob 0) to fit on, and those to test on with every certain defect (prob 1)."""
    good = np.random.default_rng(0).permutation(np.flatnonzero(prob == 0))
    return good[:1131], np.concatenate([good[1131:], np.flatnonzero(prob == 1)])


def _elpv(root: Path, part: str) -> Data:
    with np.load(root / "elpv_128.npz") as data:
        fit, test = elpv_split(data["prob"])
        x, prob = data["x"], data["prob"]
        if part == "all":
            return Data({"x": x[fit]}, {"x": x[test]}, (prob[test] == 1).astype(np.int8))
        cell = np.where(data["mono"] != 0, "monocrystalline", "polycrystalline")
        return Data(
            {"x": x[fit], "cell": cell[fit]},
            {"x": x[test], "cell": cell[test]},
            (prob[test] == 1).astype(np.int8),
            SourceOptions(calibrate_by="cell"),
        )


def _screw(root: Path, part: str) -> Data:
    with np.load(root / "mvtec_screw_256.npz") as data:
        return Data(
            {"x": data["x_train"]},
            {"x": data["x_test"]},
            (data["y_test"] != 0).astype(np.int8),
            shaping=InputOptions(invariances=("rotation", "lighting")),
        )


def tep_label() -> NDArray[np.int8]:
    """Labels of the test rows: d00_te, then every fault's file, in the order of `TEP_FAULTS`."""
    label = np.zeros((1 + len(TEP_FAULTS), TEP_ROWS), np.int8)
    label[1:, TEP_ONSET:] = 1
    return label.ravel()


def _tep(root: Path, part: str) -> Data:
    with np.load(root / "tep.npz") as data:
        test = np.concatenate([data["d00_te"], *(data[f"d{f:02}_te"] for f in TEP_FAULTS)])
        return Data({"x": data["d00"]}, {"x": test}, tep_label())


def _adbench(root: Path, part: str) -> Data:
    with np.load(root / "adbench" / f"{part}.npz") as data:
        x, y = data["X"].astype(np.float64), data["y"]
    fit, test = halves(y)
    vectors = SourceOptions(kind="vector")
    return Data({"x": x[fit]}, {"x": x[test]}, (y[test] != 0).astype(np.int8), vectors, vectors)


def _skab(root: Path, part: str) -> Data:
    path = root / "skab" / f"{part}.csv"
    with path.open() as lines:
        names = next(lines).rstrip("\n").split(";")
        at = names.index("anomaly")
        label = np.array([float(line.rstrip("\n").split(";")[at]) != 0 for line in lines], np.int8)
    unlearned = ("anomaly", "changepoint")
    return Data(
        path,
        path,
        label,
        SourceOptions(exclude=unlearned, rows=(0, SKAB_FIT)),
        SourceOptions(exclude=unlearned, rows=(SKAB_FIT, None)),
    )


def _natural(text: str) -> tuple[str, int]:
    folder, _, number = text.rpartition("/")
    return folder, int(number)


SETS: dict[str, Protocol] = {
    "fashion": Protocol(
        "Fashion-MNIST one-class",
        "image",
        _there("fashion_mnist.npz", *map(str, range(10))),
        ("2", "4", "6"),
        _fashion,
        "fashion_mnist_{}",
        0.928,
    ),
    "elpv": Protocol("ELPV solar cells", "image", _there("elpv_128.npz", "all"), None, _elpv, "elpv_64", 0.77),
    "screw": Protocol(
        "MVTec AD screw",
        "image",
        _there("mvtec_screw_256.npz", "all"),
        None,
        _screw,
        "screw_64",
        0.70,
        "its clean test images are darker than every training image",
    ),
    "tep": Protocol(
        "Tennessee Eastman rows",
        "vector",
        _there("tep.npz", "all"),
        None,
        _tep,
        "tep_rows",
        0.975,
        "its test rows come from later runs of a process that drifts",
    ),
    "adbench": Protocol(
        "ADBench",
        "vector",
        lambda root: sorted(p.stem for p in (root / "adbench").glob("*.npz")),
        (
            "18_Ionosphere",
            "19_landsat",
            "20_letter",
            "26_optdigits",
            "2_annthyroid",
            "40_vowels",
            "44_Wilt",
            "6_cardio",
        ),
        _adbench,
        "adb_{}",
        0.855,
    ),
    "skab": Protocol(
        "SKAB",
        "series",
        lambda root: sorted(
            (p.relative_to(root / "skab").with_suffix("").as_posix() for p in (root / "skab").glob("[!a]*/*.csv")),
            key=_natural,
        ),
        ("other/1", "other/6", "other/11", "valve1/0", "valve1/7", "valve2/1"),
        _skab,
        reach=0.76,
        not_exchangeable="its test rows come later than its clean rows, on a test bed that drifts",
    ),
}

# Not part of the quality benchmark: what else the calibration study fits.
STUDIED: dict[str, Protocol] = {
    "two-products": Protocol(
        "Fashion-MNIST, two products on one line",
        "image",
        _there("fashion_mnist.npz", "shirt-sneaker"),
        None,
        _two_products,
    ),
    "elpv-by-cell": Protocol("ELPV, calibrated by cell type", "image", _there("elpv_128.npz", "by-cell"), None, _elpv),
}


def protocol(name: str) -> Protocol:
    """Of any set that is measured here."""
    return SETS[name] if name in SETS else STUDIED[name]


def parts(name: str, root: Path, panel: str) -> list[str]:
    """The parts of a set in a panel, `small` or `full`; none where the set is absent."""
    chosen = protocol(name)
    found = list(chosen.names(root))
    if panel == "full" or chosen.small is None:
        return found
    return [part for part in found if part in chosen.small]
