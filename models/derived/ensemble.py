"""Several bundles as one: a score graph that runs them all, calibrated on clean samples as one.

For members i with scores s_i and maps h_i on the same raw input,

    score = mean_i (s_i - m_i) / d_i          m_i, d_i: median and spread of member i's own clean calibration scores
    map   = mean_i (h_i - l_i) / (u_i - l_i)  l_i, u_i: member i's clean map range (median, 99.9 %)

A member's score is in clean standard deviations already; taking its own calibration's median and spread makes that
exact, so that no member outweighs another. The spread is the interquartile range over that of a standard normal
distribution. Every member's terms stay, named `member.term`. What is strange to one member alone is diluted by the
others: deciding by `member.score` asks that member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from vaegis.models import spec as specs
from vaegis.models.blocks import Samples
from vaegis.models.bundle import CALIBRATION, ROI, SCORE, Bundle, write_bundle
from vaegis.models.calibration import ALL, Calibration, to_bytes
from vaegis.models.derived.calibrating import LEAST, calibrate_graph, independent, usable_alpha
from vaegis.models.derived.copies import copies_of
from vaegis.models.errors import Refusal
from vaegis.models.manifest import Ancestor, Lineage, Manifest, SplitSizes, Training, installed_versions
from vaegis.models.runtime.graph import Graph

NORMAL_RANGE = 1.349  # interquartile range of a standard normal distribution


@dataclass(frozen=True)
class Member:
    """A bundle and what its terms are called within the ensemble."""

    name: str
    bundle: Bundle


def check(members: Sequence[Member]) -> None:
    """Whether the members can run on the same input.

    Raises:
        Refusal: fewer than two, one twice, or another input spec, naming what differs.
    """
    if len(members) < 2:
        raise Refusal(f"{len(members)} model was given; an ensemble takes two or more.")
    first = members[0]
    names: dict[str, str] = {}
    for member in members:
        if member.bundle.digest in names:
            raise Refusal(f"{names[member.bundle.digest]} and {member.name} are the same bundle; name each model once.")
        names[member.bundle.digest] = member.name
        ours, theirs = specs.to_json(first.bundle.spec), specs.to_json(member.bundle.spec)
        for field in [*ours, *(f for f in theirs if f not in ours)]:
            if ours.get(field) != theirs.get(field):
                raise Refusal(
                    f"{first.name} and {member.name} take different inputs: {field} is {_phrase(ours.get(field))} for "
                    f"one and {_phrase(theirs.get(field))} for the other. Fit them alike."
                )


def merge(members: Sequence[Member]) -> bytes:
    """Merges the members' score graphs into one.

    Raises:
        Refusal: graphs of different operator sets, as versions years apart may write.
    """
    import onnx
    from onnx import TensorProto, compose, helper, numpy_helper

    models = [onnx.load_model_from_string(m.bundle.read(SCORE)) for m in members]
    sets = [{(o.domain or "ai.onnx"): o.version for o in model.opset_import} for model in models]
    for member, versions in zip(members, sets, strict=True):
        if versions.get("ai.onnx") != sets[0].get("ai.onnx"):
            raise Refusal(
                f"The graphs of {members[0].name} and {member.name} were written by different versions (operator sets "
                f"{sets[0].get('ai.onnx')} and {versions.get('ai.onnx')}); fit the older one again."
            )
    graph = onnx.GraphProto(name="vaegis")
    graph.input.extend(models[0].graph.input)
    shared = {i.name for i in graph.input}
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])]
    parts: dict[str, list[str]] = {"score": [], "map": []}
    functions = []

    def constant(name: str, value: float) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    for i, (member, model) in enumerate(zip(members, models, strict=True)):
        if {n.name for n in model.graph.input} != shared:
            raise Refusal(
                f"The graph of {member.name} takes other inputs than that of {members[0].name}; fit it again."
            )
        prefix = f"m{i}/"
        own = compose.add_prefix(model, prefix)
        functions += list(own.functions)
        graph.node.extend(helper.make_node("Identity", [n], [prefix + n]) for n in sorted(shared))
        graph.node.extend(own.graph.node)
        graph.initializer.extend(own.graph.initializer)
        for output in model.graph.output:
            if output.name == "map":
                continue
            term = f"{member.name}.{output.name}"
            graph.node.append(helper.make_node("Identity", [prefix + output.name], [term]))
            outputs.append(helper.make_tensor_value_info(term, TensorProto.FLOAT, ["batch"]))
        calibration = member.bundle.calibration
        low, high = calibration.map_range
        for what, (start, span) in {"score": _centre(calibration), "map": (low, max(high - low, 1e-12))}.items():
            moved, scaled = f"{prefix}{what}/moved", f"{prefix}{what}/scaled"
            graph.node.extend(
                [
                    helper.make_node("Sub", [prefix + what, constant(f"{prefix}{what}/start", start)], [moved]),
                    helper.make_node("Div", [moved, constant(f"{prefix}{what}/span", span)], [scaled]),
                ]
            )
            parts[what].append(scaled)
    for what, names in parts.items():
        graph.node.append(helper.make_node("Mean", names, [what]))
    outputs.append(
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", *members[0].bundle.spec.map_shape])
    )
    graph.output.extend(outputs)
    every = {domain: max(s.get(domain, 0) for s in sets) for s in sets for domain in s}
    merged = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("" if d == "ai.onnx" else d, v) for d, v in sorted(every.items())],
        ir_version=max(model.ir_version for model in models),
        producer_name="vaegis",
        functions=functions,
    )
    onnx.checker.check_model(merged)
    return bytes(merged.SerializeToString(deterministic=True))


def meaning(members: Sequence[Member]) -> dict[str, str]:
    """Evidence term -> what it says."""
    names = ", ".join(m.name for m in members)
    meanings = {
        "score": f"mean of the scores of {names}, each in its own clean standard deviations above its clean median"
    }
    for member in members:
        for term, says in member.bundle.manifest.evidence.items():
            meanings[f"{member.name}.{term}"] = f"{member.name}: {says}"
    return meanings


def ensemble_bundle(members: Sequence[Member], graph: bytes, samples: Samples, alpha: float, out: Path) -> Bundle:
    """Calibrates the members' merged graph on clean samples and writes the ensemble.

    Args:
        samples: clean samples that no member was fitted on; the manifest names members that were fitted on these data.
        alpha: the rate used when none is asked for; raised to the lowest that the samples support.

    Raises:
        Refusal: too few samples, or evidence that is no finite number.
    """
    spec, copies = members[0].bundle.spec, copies_of(samples)
    n = len(copies.counted)
    if n < LEAST:
        given = f"{n} clean samples" if n == len(samples) else f"{n} distinct clean samples, of {len(samples)},"
        raise Refusal(f"{given} were given; calibrating an ensemble takes {LEAST} at least. Add clean samples.")
    effective = independent(samples, copies.counted, copies)
    calibration, _ = calibrate_graph(Graph(graph, spec, "cpu"), samples, copies.counted, effective)
    files = {SCORE: graph, CALIBRATION: to_bytes(calibration)}
    if ROI in members[0].bundle.manifest.files:
        files[ROI] = members[0].bundle.read(ROI)
    manifest = Manifest(
        family="ensemble",
        arguments={"members": [m.name for m in members]},
        spec=specs.to_json(spec),
        evidence=meaning(members),
        alpha=usable_alpha(calibration, alpha),
        training=Training(
            digest=samples.digest,
            samples=len(samples),
            skipped=len(samples.skipped),
            split=SplitSizes(calibrate=n),
            calibrate=n,
            calibrate_independent=calibration.groups[ALL].effective,
            calibrate_digest=samples.digest,
            calibrated_on_data_of=fitted_on(members, samples),
        ),
        lineage=Lineage(members=tuple(_ancestor(m) for m in members)),
        versions=installed_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return write_bundle(out, files, manifest)


def fitted_on(members: Sequence[Member], samples: Samples) -> tuple[str, ...]:
    """The names of the members that were fitted on these very data."""
    return tuple(m.name for m in members if m.bundle.manifest.training.digest == samples.digest)


def _ancestor(member: Member) -> Ancestor:
    manifest = member.bundle.manifest
    return Ancestor(member.name, manifest.family, manifest.digest, manifest.lineage)


def _centre(calibration: Calibration) -> tuple[float, float]:
    """Median and spread of a member's clean scores."""
    low, middle, high = np.quantile(calibration.groups[ALL].terms["score"].values, [0.25, 0.5, 0.75]).tolist()
    return middle, (high - low) / NORMAL_RANGE or 1.0


def _phrase(value: object) -> str:
    return "not declared" if value in (None, (), []) else str(value)
