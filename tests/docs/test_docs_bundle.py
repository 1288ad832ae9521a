"""docs/bundle.md against bundles that were just fitted: manifest, graphs, calibration, report; both ways."""

import dataclasses
import io
import json
import re

import numpy as np
import onnx
import pytest
from doc_pages import code_spans, first_cells, page, rows, section

from vaegis.models.spec import SPECS
from vaegis.training.pipeline import run
from vaegis.training.request import Request

PAGE = page("bundle.md")
KINDS = ("image", "series", "vector")


@pytest.fixture(scope="module")
def bundles(fitted, sources, tmp_path_factory):
    """One of every kind, one that generates without a decoder, one whose generated samples are judged."""
    folder = tmp_path_factory.mktemp("generating")
    request = Request(
        source=sources / "vector.npz", name="toy", out=folder / "bundle", work=folder, family="pca", generation=True
    )
    return [fitted("vae", kind).bundle for kind in KINDS] + [fitted("diffusion", "vector").bundle, run(request).bundle]


def members(value):
    """The dotted names of an object's members."""
    names = set()
    for key, inner in value.items():
        names |= {key} | ({f"{key}.{name}" for name in members(inner)} if isinstance(inner, dict) else set())
    return names


def is_documented(name, listing):
    """Whether a member is in the table: by its name, or under a name in capitals that stands for any."""
    return any(re.fullmatch(re.sub(r"[A-Z][A-Z_]+", r"[^.]+", d).replace(".", r"\."), name) for d in listing)


def covers(listing, actual, leave=()):
    """Nothing is left out by either side. `leave`: objects whose members other pages list."""
    inside = re.compile("|".join(rf"{re.escape(name)}\..*" for name in leave) or "(?!)")
    actual = {name for name in actual if not inside.fullmatch(name)}
    missing = sorted(name for name in actual if not is_documented(name, listing))
    assert missing == [], "not documented"
    strange = sorted(d for d in listing if not any(is_documented(name, [d]) for name in actual))
    assert strange == [], "documented, and not there"


def test_every_member_of_the_manifest_is_documented(bundles):
    actual = set()
    for bundle in bundles:
        actual |= members(json.loads((bundle.path / "manifest.json").read_text("utf-8")))
    covers(
        first_cells(section(PAGE, "manifest.json")),
        actual,
        leave=("arguments", "spec", "evidence", "versions", "files"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_of_the_spec_is_documented(kind):
    table = [row for row in rows(section(PAGE, "The spec")) if kind in row[1] or row[1] == "all"]
    listing = [name for row in table for name in code_spans(row[0])]
    assert sorted(listing) == sorted(["kind", *(f.name for f in dataclasses.fields(SPECS[kind]))])


def test_every_file_of_a_bundle_is_documented(bundles):
    listing = first_cells(section(PAGE, "The folder"))
    for bundle in bundles:
        assert [f for f in ("manifest.json", *bundle.manifest.files) if f not in listing] == []


def test_inputs_and_outputs_of_the_graphs_are_documented(bundles):
    types = {1: "float32", 2: "uint8", 4: "uint16", 7: "int64", 11: "float64"}
    for bundle in bundles:
        for name in bundle.manifest.files:
            if not name.endswith(".onnx"):
                continue
            table = rows(section(PAGE, name))
            cells = {q: " ".join(row[1:]) for row in table for q in code_spans(row[0])}
            graph = onnx.load_model_from_string(bundle.read(name)).graph
            for value in (*graph.input, *graph.output):
                term = value.name if value.name in cells else "TERM"
                assert term in cells, f"{name}: {value.name} of {bundle.spec.kind}"
                assert types[value.type.tensor_type.elem_type] in cells[term], f"{name}: {value.name}"


def test_every_array_of_the_calibration_is_documented(bundles):
    with np.load(io.BytesIO(bundles[0].read("calibration.npz"))) as data:
        actual = {re.sub(r"_\d+_\d+$", "_G_T", name) for name in data.files}
    listing = set(first_cells(section(PAGE, "calibration.npz")))
    assert actual <= listing
    assert listing <= actual | {"tail_G_T"}  # of calibrations with enough samples for one


def test_every_member_of_the_report_is_documented(bundles):
    actual = set()
    for bundle in bundles:
        for name, value in json.loads(bundle.read("report/report.json")).items():
            listed = value if isinstance(value, list) else []
            actual |= {name} | {f"{name}.{m}" for row in listed if isinstance(row, dict) for m in members(row)}
            actual |= {f"{name}.{m}" for m in members(value)} if isinstance(value, dict) else set()
            if isinstance(value, dict) and isinstance(value.get("units"), list):
                actual |= {f"{name}.units.{m}" for row in value["units"] for m in row}
    listing = first_cells(section(PAGE, "report/report.json"))
    covers(listing, actual, leave=("arguments", "input", "evidence", "training", "decision.groups"))


def test_the_example_with_onnxruntime_alone_runs(bundles, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(import json.*?)```", PAGE, re.S)
    (tmp_path / "bundle").symlink_to(bundles[0].path)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "bundle.md", "exec"), {})
    assert "score" in capsys.readouterr().out


def test_the_example_with_the_product_runs(bundles, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(import numpy as np\n\nimport vaegis.*?)```", PAGE, re.S)
    (tmp_path / "bundle").symlink_to(bundles[0].path)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "bundle.md", "exec"), {})
    assert "score" in capsys.readouterr().out
