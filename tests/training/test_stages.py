"""The stages of a fit, each by itself; and a fit of samples that are in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toy_data import SMALL, VECTORS, recipes, vectors
from vaegis.models.calibration import decide
from vaegis.models.derived.calibrating import evidence_of
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch
from vaegis.models.inputs import InMemory, InputOptions
from vaegis.models.runtime.graph import Graph
from vaegis.models.sources import SourceOptions, open_arrays
from vaegis.training.fit import fit
from vaegis.training.pipeline import run, spec_of
from vaegis.training.request import FitOptions, Request
from vaegis.training.splits import split
from vaegis.training.stages import (
    calibrate_export,
    check_family,
    export_family,
    fuse,
    judge_generation,
    meaning,
    new_family,
    partition_samples,
    read_samples,
    survey_source,
)

QUICK = FitOptions(steps=60, device="cpu")
X = vectors(400, 1)


@pytest.fixture(scope="module")
def stages():
    """Every value from samples to a calibrated export, fitted as `fitted("vae", "vector")` is."""
    partition = partition_samples(InMemory(VECTORS_BY_NUMBER, X), 0)
    family = new_family("vae", SMALL["vae"], VECTORS_BY_NUMBER, 0)
    result = fit(family, partition.samples, partition.split, QUICK)
    fuse(family, partition.samples, partition.split, 0)
    export = export_family(family, partition)
    return partition, result, export, calibrate_export(export, partition, 0.05)


VECTORS_BY_NUMBER = replace(VECTORS, columns=tuple("012345"))


def test_a_survey_decides_the_spec_and_reads_nothing_else(tmp_path):
    survey = survey_source(open_arrays(np.c_[X, np.ones(400)], SourceOptions()), SourceOptions(), InputOptions())
    assert survey.spec == replace(VECTORS, columns=tuple("0123456"))
    assert survey.notes == ("Column 6 is constant in the clean data: any other value will look strange.",)
    assert survey.roi is None
    reading = read_samples(survey, tmp_path / "spool")
    assert np.array_equal(reading.samples.take(np.arange(400))[:, :6], X)
    assert (tmp_path / "spool").exists()
    assert reading.notes == ()


def test_a_partition_is_the_split_and_what_is_worth_a_note():
    x = np.concatenate([recipes(250, "A", 1), recipes(30, "B", 2)])
    codes = np.repeat([0, 1], [250, 30])
    spec = replace(VECTORS, columns=tuple("0123"), conditions=("A", "B"))
    partition = partition_samples(InMemory(spec, x, conditions=codes), 3)
    expected = split(partition.samples, 3)
    assert partition.split.counts() == expected.counts()
    assert np.array_equal(partition.split.calibrate, expected.calibrate)
    assert partition.notes == ("Condition 'B' has only 30 clean samples; its verdicts will be poor. Add some.",)
    lone = InMemory(spec, x[:251], conditions=codes[:251])
    sides = [i for i in range(20) if 250 not in split(lone, i).fit]
    with pytest.raises(Refusal, match="Condition 'B' has 1 clean samples, and none of them is left to learn from"):
        partition_samples(lone, sides[0])


def test_a_new_family_depends_on_the_seed_alone():
    one, two, other = (new_family("vae", SMALL["vae"], VECTORS, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(Refusal, match="no family 'vea'; the families are"):
        check_family("vea")


def test_an_export_scores_as_the_family_does(stages):
    partition, result, export, _ = stages
    assert {"score.onnx", "encoder.onnx", "decoder.onnx"} <= set(export.graphs)
    assert export.notes == () and export.gate.samples == len(partition.split.calibrate)
    x = X[:50]
    with torch.no_grad():
        expected, _ = result.family.score(Batch(torch.from_numpy(x)))
    score = Graph(export.graphs["score.onnx"], VECTORS_BY_NUMBER, "cpu").run(x)["score"]
    assert score == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)


def test_a_calibrated_export_decides_at_the_rate_asked_for(stages):
    partition, _, export, calibrated = stages
    graph = Graph(export.graphs["score.onnx"], VECTORS_BY_NUMBER, "cpu")
    evidence = evidence_of(graph, partition.samples, partition.split.calibrate)
    assert {t: v.tolist() for t, v in calibrated.evidence.items()} == {t: v.tolist() for t, v in evidence.items()}
    n = len(partition.split.calibrate)
    assert (calibrated.alpha, calibrated.decision) == (0.05, decide(calibrated.calibration, 0.05))
    assert (evidence["score"] > calibrated.decision.threshold).sum() == int(0.05 * (n + 1) + 1e-9) - 1
    low = calibrate_export(export, partition, 1e-6)
    assert low.alpha == 0.001 and low.decision.extrapolated
    assert "A false-alarm rate of 1e-06 needs more than the" in low.notes[0]
    assert "the threshold is extrapolated beyond" in low.notes[1]


def test_generation_that_cannot_be_judged_is_a_note(stages, tmp_path):
    partition, result, export, _ = stages
    judgement = judge_generation(result.family, "vae", export.graphs, partition, 0, tmp_path / "no.onnx")
    assert judgement.generation is None
    assert judgement.notes[0].startswith("What the model generates could not be judged: --features")


def test_the_score_means_its_terms_together(stages):
    says = meaning(stages[1].family)
    assert list(says)[0] == "score"
    assert says["score"].startswith(", ".join(stages[1].family.fusion.terms) + " together")


@pytest.fixture
def request_(tmp_path):
    """The request that `fitted("vae", "vector")` answers, of samples that are in memory."""
    return Request(
        source=open_arrays(X, SourceOptions()),
        name="toy",
        out=tmp_path / "bundle",
        work=tmp_path / "work",
        arguments=SMALL["vae"],
        alpha=0.05,
        options=QUICK,
    )


def test_samples_in_memory_give_the_model_that_a_file_of_them_gives(fitted, request_, tmp_path):
    file = fitted("vae", "vector")
    memory = run(request_)
    assert memory.bundle.digest == file.bundle.digest
    assert memory.bundle.manifest.training.digest == file.bundle.manifest.training.digest
    spec = spec_of(request_)
    samples = run(replace(request_, source=InMemory(spec, X), out=tmp_path / "samples"))
    assert samples.bundle.digest == file.bundle.digest
    assert spec_of(replace(request_, source=InMemory(spec, X))) == spec == file.bundle.spec


def test_the_stages_one_by_one_give_the_graphs_of_the_whole(stages, fitted):
    bundle = fitted("vae", "vector").bundle
    _, _, export, calibrated = stages
    assert {n: bundle.read(n) for n in export.graphs} == export.graphs
    terms = bundle.calibration.group(None).terms
    for term, values in calibrated.evidence.items():
        assert terms[term].values.tolist() == np.sort(values).tolist()


def test_groups_in_memory_stay_whole(request_, tmp_path):
    groups = np.repeat(np.arange(40), 10)
    source = open_arrays({"x": X, "batch": groups}, SourceOptions(group_by="batch"))
    np.savez(tmp_path / "clean.npz", x=X, batch=groups)
    family = {"family": "pca", "arguments": {}}
    memory = run(replace(request_, source=source, **family))
    sides = [set(groups[side].tolist()) for side in (memory.split.fit, memory.split.validate, memory.split.calibrate)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert memory.bundle.manifest.training.group_by == "batch"
    request = replace(request_, source=tmp_path / "clean.npz", out=tmp_path / "file", **family)
    path = replace(request, reading=SourceOptions(group_by="batch"))
    assert run(path).bundle.digest == memory.bundle.digest


def test_conditions_in_memory(conditional, tmp_path):
    x, names = np.concatenate([recipes(250, "A", 1), recipes(250, "B", 2)]), np.repeat(["A", "B"], 250)
    request = Request(
        source=open_arrays({"x": x, "c": names}, SourceOptions(condition="key:c")),
        name="recipes",
        out=tmp_path / "bundle",
        work=tmp_path / "work",
        arguments={"width": 16, "latent": 2},
        alpha=0.05,
        options=FitOptions(steps=400, device="cpu"),
    )
    assert run(request).bundle.digest == conditional.bundle.digest
