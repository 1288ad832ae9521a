"""The protocols: splits against hand-made arrays, and the real sets where they are."""

import numpy as np
import pytest
from tests.bench import pages, quality, tables
from tests.bench.sets import (
    SETS,
    SKAB_FIT,
    TEP_FAULTS,
    data_folder,
    elpv_split,
    halves,
    parts,
    protocol,
    tep_label,
)

here = pytest.mark.skipif(
    not (data_folder() / "peers.json").exists(), reason="the data sets (../shared/data or VAEGIS_DATA) are not here"
)


def test_half_of_the_clean_samples_is_fitted_and_every_other_sample_tested():
    label = np.array([0, 1, 0, 0, 0, 1, 0], np.int8)
    fit, test = halves(label)
    assert len(fit) == 2 and set(label[fit]) == {0}
    assert sorted([*fit, *test]) == list(range(7))
    assert test[-2:].tolist() == [1, 5]
    good = np.random.default_rng(0).permutation([0, 2, 3, 4, 6])
    assert fit.tolist() == good[:2].tolist()


def test_uncertain_solar_cells_are_not_used():
    prob = np.r_[np.zeros(1140), np.full(5, 1 / 3), np.ones(7)]
    fit, test = elpv_split(prob)
    assert len(fit) == 1131 and len(test) == 9 + 7
    assert (prob[fit] == 0).all() and set(prob[test]) == {0.0, 1.0}


def test_faults_begin_at_row_161_of_each_file():
    label = tep_label().reshape(-1, 960)
    assert label.shape[0] == 19 and not label[0].any()
    assert (label[1:, :160] == 0).all() and (label[1:, 160:] == 1).all()
    assert len(TEP_FAULTS) == 18


def test_absent_data_end_quietly(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAEGIS_DATA", str(tmp_path))
    assert quality.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "{}"


def test_the_page_has_every_section_the_tools_write():
    sections = {*tables.sections([], data_folder()), "speed", "costs"}
    sections |= {f"calibration-{name}" for name in ("uniform", "sizes", "groups", "tail", "repeat")}
    pages.replaced(pages.PAGE.read_text("utf-8"), dict.fromkeys(sections, "x"))


@here
def test_panels():
    root = data_folder()
    full = {name: len(parts(name, root, "full")) for name in SETS}
    assert full == {"fashion": 10, "elpv": 1, "screw": 1, "tep": 1, "adbench": 23, "skab": 34}
    small = {name: len(parts(name, root, "small")) for name in SETS}
    assert small == {"fashion": 3, "elpv": 1, "screw": 1, "tep": 1, "adbench": 8, "skab": 6}


@here
def test_families_are_shown_on_the_small_panel_alone():
    """A part beside the panel does not count, and a set that lacks a part has no figure."""

    def row(name, part, family, auroc):
        return {"set": name, "part": part, "family": family, "seed": 0, "auroc": {"score": auroc}, "fit_s": 3.0}

    rows = [row("fashion", part, "pca", 0.9) for part in ("2", "4", "6")]
    rows += [row("fashion", "0", "pca", 0.1), row("fashion", "2", "vae", 0.8), row("elpv", "all", "vae", 0.7)]
    lines = tables.families(rows, ["vae", "pca"], data_folder()).splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines}
    assert cells["AUROC %"][:2] == ["Fashion-MNIST one-class (3)", "ELPV solar cells"]
    assert cells["vae"] == ["-", "70.0", "-", "-", "3"]
    assert cells["pca"] == ["90.0", "-", "-", "-", "3"]
    assert cells["PyOD VAE"][1] == "76.0"


@here
@pytest.mark.parametrize(
    ("name", "part", "fit", "clean", "anomalies"),
    [
        ("elpv", "all", (1131, 128, 128), 377, 715),
        ("screw", "all", (320, 256, 256), 41, 119),
        ("tep", "all", (500, 52), 960 + 18 * 160, 18 * 800),
        ("adbench", "47_yeast", (488, 8), 489, 507),
        ("elpv-by-cell", "by-cell", (1131, 128, 128), 377, 715),
    ],
)
def test_a_set_is_split_as_its_protocol_says(name, part, fit, clean, anomalies):
    data = protocol(name).load(data_folder(), part)
    assert data.clean["x"].shape == fit
    assert ((data.label == 0).sum(), (data.label == 1).sum()) == (clean, anomalies)
    assert len(data.test["x"]) == len(data.label)


@here
def test_skab_labels_count_from_the_first_row_of_a_file():
    data = protocol("skab").load(data_folder(), "valve1/0")
    assert data.reading.rows == (0, SKAB_FIT) and data.scoring.rows == (SKAB_FIT, None)
    assert {"anomaly", "changepoint"} == set(data.reading.exclude)
    assert len(data.label) == 1147 and not data.label[:SKAB_FIT].any() and data.label.any()


@here
def test_peers_are_known_for_every_part():
    from tests.bench.summary import peer

    for name in SETS:
        if SETS[name].peer:
            assert peer(data_folder(), name, parts(name, data_folder(), "full"), "VAE") is not None, name
    assert peer(data_folder(), "fashion", parts("fashion", data_folder(), "full"), "VAE") == pytest.approx(
        0.921, abs=0.001
    )
    # GMM failed on some tables, so it has no mean over all of them.
    assert peer(data_folder(), "adbench", ["37_Stamps"], "GMM") is None
    assert peer(data_folder(), "adbench", parts("adbench", data_folder(), "full"), "GMM") is None
