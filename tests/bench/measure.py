"""One fit and what it is worth: the product's own path from clean data to verdicts, in a folder that is thrown away."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.bench import figures
from tests.bench.results import Row, Wish
from tests.bench.sets import Arrays, Data, protocol

from vaegis.models import inputs, sources
from vaegis.models.bundle import Bundle, open_bundle
from vaegis.models.calibration import ALL, decide
from vaegis.models.inputs import InputOptions
from vaegis.models.scorer import Scorer
from vaegis.training.pipeline import run
from vaegis.training.request import FitOptions, Request, Watch

FIT_KEYS = ("batch", "rate", "window", "stride", "size", "invariant")  # --fit: options of `vaegis fit`


def measure(wish: Wish, root: Path, code: str, label: str, device: str = "auto") -> tuple[Row, Arrays]:
    """Fits one part, scores its test samples, and returns the row and the evidence behind it.

    Args:
        wish: its options hold the family's arguments, and those of `vaegis fit` with `fit.` before the name.
        root: the data folder.
        label: of the set of options, for people.
    """
    data = protocol(wish.set).load(root, wish.part)
    with tempfile.TemporaryDirectory(prefix="vaegis-bench-") as name:
        folder = Path(name)
        clean, test = put(data.clean, folder / "clean.npz"), put(data.test, folder / "test.npz")
        request = requested(wish, data, clean, folder, device)
        stages: list[tuple[str, float]] = []
        began = time.perf_counter()
        made = run(request, Watch(stage=lambda text: stages.append((text.split()[0].lower(), time.perf_counter()))))
        wall = time.perf_counter() - began
        ends = [at for _, at in stages[1:]] + [began + wall]
        bundle = open_bundle(request.out)
        scored = score(bundle, test, data, device)
    evidence, index, flagged = scored["evidence"], scored["index"], scored["flagged"]
    truth = data.label[index]
    judged = np.isfinite(evidence["score"])
    auroc, ap = figures.areas(evidence, truth)
    group = bundle.calibration.group(None)
    vectors = bundle.spec.kind != "series"
    row: Row = {
        "set": wish.set,
        "part": wish.part,
        "family": wish.family,
        "options": dict(wish.options),
        "option_set": label,
        "asked_steps": wish.steps,
        "seed": wish.seed,
        "code": code,
        "key": wish.key(code),
        "auroc": auroc,
        "ap": ap,
        "fit_s": round(made.fit.seconds, 2),  # training alone
        "wall_s": round(wall, 2),  # all of `vaegis fit`: reading, training, export, calibration, report
        "stages_s": {what: round(end - at, 2) for (what, at), end in zip(stages, ends, strict=True)},
        "steps": made.fit.steps,
        "best_step": made.fit.best_step,
        "stopped": made.fit.stopped,
        "parameters": bundle.manifest.training.parameters,
        "score_ms": round(1000 * scored["seconds"] / max(1, len(index)), 5),  # a sample, in blocks
        "split": made.split.counts(),
        "calibrated_on": group.effective,
        "alpha": bundle.manifest.alpha,
        "tested": {"clean": int((truth == 0).sum()), "anomalies": int((truth != 0).sum())},
        "unjudged": int((~judged).sum()),
        "false_alarms": figures.false_alarms(bundle.calibration, evidence["score"], truth, vectors),
        "counts": asdict(figures.counts(flagged[judged], truth[judged])),
        "arguments": bundle.manifest.arguments,
        "digest": bundle.digest,
        "notes": list(made.notes),
        "versions": bundle.manifest.versions,
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "architecture": platform.machine(),
            "device": scored["device"],
            "load": round(os.getloadavg()[0], 1),
        },
    }
    if wish.set == "skab":
        row["by_rate"] = figures.by_rate(bundle.calibration, evidence["score"], truth)
    if wish.set == "tep":
        row["faults"] = figures.faults(bundle.calibration, evidence["score"])
    kept: dict[str, NDArray[Any]] = {"label": truth, "index": index}
    kept |= {f"test_{t}": v.astype(np.float32) for t, v in evidence.items()}
    kept |= {f"clean_{t}": r.values.astype(np.float32) for t, r in group.terms.items()}
    for g, one in bundle.calibration.groups.items():
        if g != ALL:
            kept[f"group_{g}"] = one.terms["score"].values.astype(np.float32)
    if scored["groups"] is not None:
        kept["test_group"] = np.array(scored["groups"], np.str_)
    return row, kept


def put(content: Arrays | Path, file: Path) -> Path:
    """Arrays written as the .npz a user would have; a file stays where it is."""
    if isinstance(content, Path):
        return content
    np.savez(file, allow_pickle=False, **content)
    return file


def requested(wish: Wish, data: Data, clean: Path, folder: Path, device: str = "auto") -> Request:
    """What `vaegis fit` would be asked."""
    asked = {k.removeprefix("fit."): v for k, v in wish.options.items() if k.startswith("fit.")}
    shaping = data.shaping
    if "invariant" in asked:
        shaping = replace(shaping, invariances=tuple(v for v in str(asked["invariant"]).split(",") if v))
    if "size" in asked and clean.suffix == ".npz":
        shaping = replace(shaping, size=(int(asked["size"]), int(asked["size"])))
    if wish.set == "skab":
        given = {k: int(asked[k]) for k in ("window", "stride") if k in asked}
        shaping = InputOptions(**{f.name: getattr(shaping, f.name) for f in fields(InputOptions)} | given)
    return Request(
        source=clean,
        name="bench",
        out=folder / "bundle",
        work=folder / "work",
        family=wish.family,
        arguments={k: v for k, v in wish.options.items() if not k.startswith("fit.")},
        reading=data.reading,
        shaping=shaping,
        options=FitOptions(
            seed=wish.seed, steps=wish.steps, batch=asked.get("batch"), rate=asked.get("rate"), device=device
        ),
    )


def score(bundle: Bundle, test: Path, data: Data, device: str = "auto") -> dict[str, Any]:
    """Verdicts on the test source at the bundle's own rate, as `vaegis score` makes them."""
    scorer = Scorer(bundle, device)
    decision = decide(bundle.calibration, bundle.manifest.alpha)
    opened = sources.open_source(test, data.scoring)
    seconds = 0.0
    evidence: dict[str, list[NDArray[np.float64]]] = {t: [] for t in scorer.terms}
    index, flagged, groups = [], [], []
    for block in inputs.blocks(opened, bundle.spec, roi=bundle.roi):
        began = time.perf_counter()
        verdicts = scorer.verdicts(block, decision)
        seconds += time.perf_counter() - began
        for term, values in verdicts.evidence.items():
            evidence[term].append(values)
        index.append(block.index)
        flagged.append(verdicts.anomalous)
        groups += list(block.groups or ())
    return {
        "evidence": {t: np.concatenate(v) for t, v in evidence.items()},
        "index": np.concatenate(index),
        "flagged": np.concatenate(flagged),
        "groups": groups or None,
        "seconds": seconds,
        "device": scorer.device,
    }
