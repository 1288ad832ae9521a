import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vaegis.models.bundle import open_bundle
from vaegis.models.calibration import decide
from vaegis.training.evaluate import interval


@pytest.fixture
def evaluated(vaegis, bundle, sources):
    """The figures of `vaegis evaluate --json` on the kind's test source."""

    def run(kind, *options, labels="key:y"):
        done = vaegis(
            "evaluate", sources / f"{kind}-test.npz", "--bundle", bundle(kind), "--labels", labels, "--json", *options
        )
        assert done.code == 0, done
        return json.loads(done.out)

    return run


def test_the_figures_are_those_of_the_score_file(evaluated, vaegis, bundle, sources, tmp_path):
    found = evaluated("vector", "--alpha", "0.1")
    vaegis(
        "score", sources / "vector-test.npz", "--bundle", bundle("vector"), "--alpha", "0.1",
        "--out", tmp_path / "s.jsonl",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    label = np.load(sources / "vector-test.npz")["y"]
    assert (found["clean"], found["anomalies"], found["unjudged"]) == (20, 20, 0)
    for term, area in found["auroc"].items():
        assert area == pytest.approx(roc_auc_score(label, [r[term] for r in rows]))
    flagged = np.array([r["anomalous"] for r in rows])
    assert found["detection_rate"] == flagged[20:].mean()
    assert found["false_alarm_rate"] == flagged[:20].mean()
    opened = open_bundle(bundle("vector"))
    decision = decide(opened.calibration, 0.1)
    assert found["threshold"] == decision.threshold
    assert found["expected"] == pytest.approx(interval(decision, opened.calibration.group(None).effective, 20))
    assert found["detection_rate"] > 0.8


def test_labels_from_a_file(evaluated, tmp_path):
    lines = ["item,index,label,class"]
    lines += [f"vector-test.npz,{i},{'good' if i < 20 else 'worn'},{'' if i < 20 else 'worn'}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    found = evaluated("vector", labels=str(tmp_path / "labels.csv"))
    assert found["auroc"] == evaluated("vector")["auroc"]
    assert list(found["by_class"]) == ["worn"]


def test_a_person_is_told_the_same(vaegis, bundle, sources, tmp_path):
    done = vaegis(
        "evaluate", sources / "vector-test.npz", "--bundle", bundle("vector"), "--labels", "key:y",
        "--out", tmp_path / "figures.json",
    )  # fmt: skip
    assert done.code == 0, done
    told = json.loads((tmp_path / "figures.json").read_text())
    assert "20 clean and 20 anomalous samples, 0 unjudged" in done.out
    assert f"found {told['detection_rate']:.1%} of the anomalies" in done.out
    assert f"flagged {told['false_alarm_rate']:.2%} of the clean samples, asked for 5.00%" in done.out
    assert "luck explains" in done.out
    assert f"{100 * told['auroc']['score']:.1f}" in done.out


def test_a_given_threshold_promises_no_rate(evaluated):
    found = evaluated("vector", "--threshold", "1e30")
    assert (found["alpha"], found["expected"], found["detection_rate"]) == (None, None, 0.0)


def test_columns_label_the_rows_of_a_series(vaegis, bundle, sources, tmp_path):
    head, *rows = (sources / "series-test.csv").read_text().splitlines()
    lines = [head + ",broken", *(f"{row},{int(i >= 300)}" for i, row in enumerate(rows))]
    (tmp_path / "live.csv").write_text("\n".join(lines) + "\n")
    done = vaegis(
        "evaluate", tmp_path / "live.csv", "--bundle", bundle("series"), "--labels", "column:broken", "--json"
    )
    assert done.code == 0, done
    found = json.loads(done.out)
    assert (found["clean"], found["anomalies"]) == (300, 100)
    assert found["auroc"]["score"] > 0.9


BAD = {
    "no such key": (["--labels", "key:z"], ["z"]),
    "no such file": (["--labels", "{tmp}/none.csv"], ["none.csv"]),
    "folders of an array": (["--labels", "folders"], ["folders"]),
    "a column of an array": (["--labels", "column:y"], ["column:y"]),
    "labels of some": (["--labels", "{tmp}/some.csv"], ["label"]),
    "anomalies only": (["--labels", "{tmp}/anomalies.csv"], ["label 0"]),
    "alpha": (["--labels", "key:y", "--alpha", "7"], ["alpha", "7"]),
    "term": (["--labels", "key:y", "--decide-by", "luck"], ["luck"]),
    "no model": (["--labels", "key:y", "--model", "ghost", "--no-bundle"], ["ghost"]),
    "out below a file": (["--labels", "key:y", "--out", "{tmp}/some.csv/f.json"], ["some.csv/f.json"]),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_answered_with_a_sentence(refused, bundle, sources, tmp_path, case):
    (tmp_path / "some.csv").write_text("item,index,label\nvector-test.npz,0,0\nvector-test.npz,1,1\n")
    (tmp_path / "anomalies.csv").write_text("item,label\nvector-test.npz,1\n")
    given, words = BAD[case]
    given = [a.format(tmp=tmp_path) for a in given]
    model = [] if "--no-bundle" in given else ["--bundle", bundle("vector")]
    refused(
        "evaluate", sources / "vector-test.npz", *model, *(a for a in given if a != "--no-bundle"), words=words
    )  # fmt: skip


def test_labels_are_needed(refused, bundle, sources):
    refused("evaluate", sources / "vector-test.npz", "--bundle", bundle("vector"), words=["--labels"], code=2)


def test_a_clean_hold_out_and_thresholds(evaluated, vaegis, bundle, sources, refused, tmp_path):
    np.save(tmp_path / "clean.npy", np.load(sources / "vector-test.npz")["x"][:20])
    clean = ("evaluate", tmp_path / "clean.npy", "--bundle", bundle("vector"))
    done = vaegis(*clean, "--clean-only", "--json", "--false-alarms", "0.1")
    assert done.code == 0, done
    figures = json.loads(done.out)
    assert (figures["clean"], figures["unjudged"]) == (20, 0)
    assert figures["false_alarm_rate"] == evaluated("vector")["false_alarm_rate"] == figures["false_alarms"] / 20
    (proposal,) = figures["proposals"]
    assert proposal["false_alarms"]["value"] == 1 / 20 and proposal["recall"] is None
    words = vaegis(*clean, "--clean-only", "--false-alarms", "0.1").said
    assert "20 clean samples, 0 unjudged" in words
    assert f"For a false-alarm rate of 10.00%: --threshold {proposal['threshold']!r} flags" in words
    again = evaluated("vector", "--recall", "0.9")["proposals"][0]
    assert evaluated("vector", "--threshold", str(again["threshold"]))["detection_rate"] == again["recall"]["value"]
    refused(*clean, words=["--labels", "--clean-only"], code=2)
    refused(*clean, "--clean-only", "--recall", "0.9", words=["takes anomalies"])
