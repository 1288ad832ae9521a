"""Half precision: a bundle whose networks compute in float16, with a calibration of its own, or a refusal.

Convolutions and matrix products, and what lies between them, compute in float16; differences, squares, sums and
logarithms of the evidence stay in float32, where float16 would overflow or lose the small differences that decide.

The gate runs both graphs over clean samples that the model was not fitted on. It asks that

- every evidence term ranks the samples alike: Spearman's correlation of at least `RANK`;
- with each graph calibrated on these samples, no decision at the bundle's rate differs for a sample further than
  `NEAR` of max(|threshold|, interquartile range) from the threshold.

The new bundle is calibrated by what its own graph gave: p-values stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaegis.models.blocks import Floats, Samples
from vaegis.models.bundle import CALIBRATION, SCORE, Bundle, write_bundle
from vaegis.models.calibration import ALL, Calibration, decide, smallest_alpha, to_bytes
from vaegis.models.derived.calibrating import calibrate_evidence, colour_scale, evidence_of, independent
from vaegis.models.derived.copies import copies_of
from vaegis.models.errors import Refusal
from vaegis.models.manifest import Proof, SplitSizes, installed_versions
from vaegis.models.runtime.graph import Graph
from vaegis.models.runtime.sessions import Device

RANK, NEAR = 0.995, 0.05
LEAST = 99  # samples, as a fit keeps for calibration
HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm")
BETWEEN = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Mul", "Add", "Reshape", "Transpose", "AveragePool")


@dataclass(frozen=True)
class Agreement:
    """How far two graphs say the same."""

    samples: int
    rank: dict[str, float]  # term -> Spearman's correlation
    flips: int  # samples decided differently, all near the threshold


def halve(raw: bytes) -> bytes:
    """Puts a graph's networks in float16; inputs and outputs stay as they are.

    Raises:
        Refusal: it has none of the operations that this helps.
    """
    model = onnx.load_from_string(raw)
    graph = model.graph
    weights = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT}
    wide = _wide(model)
    half: dict[str, str] = {}  # tensor -> its name in float16
    nodes, heavy = [], 0

    def in_half(name: str) -> str:
        if name in half or not name:
            return half.get(name, name)
        half[name] = f"{name}/half"
        if name in weights:
            with np.errstate(over="ignore"):  # what becomes infinite is found by the gate
                narrow = numpy_helper.to_array(weights[name]).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(narrow, half[name]))
        else:
            nodes.append(helper.make_node("Cast", [name], [half[name]], to=TensorProto.FLOAT16))
        return half[name]

    for node in graph.node:
        # Between heavy operations: whatever takes nothing but halves. A shape is no float.
        floats = node.input[:1] if node.op_type == "Reshape" else node.input
        if not wide.isdisjoint(node.input):
            nodes.append(node)
            continue
        if node.op_type in HEAVY:
            heavy += 1
        elif node.op_type not in BETWEEN or not all(i in half and i not in weights for i in floats):
            nodes.append(node)
            continue
        inputs = [in_half(i) if i in floats else i for i in node.input]
        outputs = [f"{o}/half" for o in node.output]
        narrow_node = helper.make_node(node.op_type, inputs, outputs, node.name)
        narrow_node.attribute.extend(node.attribute)
        nodes.append(narrow_node)
        for name, narrow in zip(node.output, outputs, strict=True):
            half[name] = narrow
            nodes.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
    if not heavy:
        raise Refusal(
            "The model's graph has no convolution or matrix product in single precision: half precision would gain "
            "nothing, or lose what double precision is there for."
        )
    del graph.node[:]
    graph.node.extend(_used(nodes, {o.name for o in graph.output}))
    needed = {i for n in graph.node for i in n.input}
    initializers = [w for w in graph.initializer if w.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _wide(model: onnx.ModelProto) -> set[str]:
    """Tensors in double precision: whoever computed in it had a reason to."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    names = {w.name for w in graph.initializer if w.data_type == TensorProto.DOUBLE}
    values = [*graph.input, *graph.output, *graph.value_info]
    return names | {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.DOUBLE}


def half_bundle(bundle: Bundle, samples: Samples, out: Path, device: Device = "cpu") -> tuple[Bundle, Agreement]:
    """Writes the bundle in half precision, calibrated anew, if it passes the gate.

    Args:
        samples: clean samples that the model was not fitted on, loaded by its spec.

    Raises:
        Refusal: it does not pass, saying by how much; the samples are too few for the bundle's rate.
    """
    raw, alpha = halve(bundle.read(SCORE)), bundle.manifest.alpha
    copies = copies_of(samples)
    chosen, n = copies.counted, len(copies.counted)
    if n < LEAST:
        count = f"{n} distinct ones of {len(samples)}" if n < len(samples) else f"{n}"
        raise Refusal(
            f"Half precision is proven and calibrated on at least {LEAST} clean samples that the model was not fitted "
            f"on; {count} were given that can be read."
        )
    single, half = Graph(bundle.read(SCORE), bundle.spec, device), Graph(raw, bundle.spec, device)
    ours, theirs = evidence_of(single, samples, chosen), evidence_of(half, samples, chosen)
    if unsound := [name for name, values in theirs.items() if not np.isfinite(values).all()]:
        raise Refusal(_too_large(unsound[0]))
    try:
        scale = colour_scale(half, samples, chosen)
    except Refusal as refusal:
        raise Refusal(_too_large("map")) from refusal
    effective = independent(samples, chosen, copies)
    before, after = (calibrate_evidence(e, samples, chosen, scale, effective) for e in (ours, theirs))
    if alpha < smallest_alpha(after.groups[ALL]):
        raise Refusal(
            f"The model's own false-alarm rate of {alpha:g} needs more than the {effective} independent clean samples "
            "that were given. Add clean samples; no bundle was written."
        )
    agreement = _gate(ours, theirs, before, after, alpha)
    manifest, split = bundle.manifest, bundle.manifest.training.split or SplitSizes()
    training = replace(
        manifest.training,
        split=replace(split, calibrate=n),
        calibrate=n,
        calibrate_independent=effective,
        calibrate_digest=samples.digest,
        calibrated_on_data_of=(),
        gate=Proof(samples=n, rank=min(agreement.rank.values()), flips=agreement.flips),
    )
    files = {name: bundle.read(name) for name in manifest.files if name not in (SCORE, CALIBRATION)}
    manifest = replace(
        manifest,
        training=training,
        lineage=replace(manifest.lineage, digest=bundle.digest, precision="float16"),
        versions={**manifest.versions, **installed_versions()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return write_bundle(out, {**files, SCORE: raw, CALIBRATION: to_bytes(after)}, manifest), agreement


def _too_large(output: str) -> str:
    return (
        f"In half precision {output} is not finite for every clean sample: its numbers are too large. The model stays "
        "in single precision; no bundle was written."
    )


def _gate(
    ours: dict[str, Floats], theirs: dict[str, Floats], before: Calibration, after: Calibration, alpha: float
) -> Agreement:
    """How far the evidence in half precision agrees with ours.

    Raises:
        Refusal: less than `RANK` and `NEAR` ask for.
    """
    rank = {t: _spearman(ours[t], theirs[t]) for t in ours}
    worst = min(rank, key=lambda t: rank[t])
    if rank[worst] < RANK:
        raise Refusal(
            f"In half precision {worst} ranks clean samples differently (Spearman {rank[worst]:.4f}, at least {RANK} "
            "is asked for). The model stays in single precision; no bundle was written."
        )
    threshold, other = decide(before, alpha).threshold, decide(after, alpha).threshold
    x, y = ours["score"], theirs["score"]
    flips = (x > threshold) != (y > other)
    spread = max(abs(threshold), float(np.subtract(*np.percentile(x, [75, 25]))))
    far = int((flips & (np.abs(x - threshold) > NEAR * spread)).sum())
    if far:
        raise Refusal(
            f"In half precision {far} of {len(x)} clean samples are decided differently that are not near the "
            "threshold. The model stays in single precision; no bundle was written."
        )
    return Agreement(len(x), rank, int(flips.sum()))


def _spearman(a: Floats, b: Floats) -> float:
    """Of the ranks; 1 where neither varies."""
    x, y = (np.unique(v, return_inverse=True)[1].astype(np.float64) for v in (a, b))
    if not x.std() or not y.std():
        return 1.0 if np.array_equal(x, y) else 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _used(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that lead to an output."""
    leading = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            leading.append(node)
            wanted |= set(node.input)
    return leading[::-1]
