"""The Open Inference Protocol as clients that others wrote speak it: tritonclient and kserve."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from http_server import serving

from toy_bundles import calibration_scores
from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry

HERE = Path(__file__).parent
PINS = HERE / "oip_clients.txt"
rng = np.random.default_rng(0)
IMAGES = rng.integers(80, 121, (5, 4, 4, 1), dtype=np.uint8)
MAPS = (IMAGES[..., 0].astype(float) - 100) ** 2
SCORES = MAPS.mean(axis=(1, 2))
P_VALUES = (1 + (calibration_scores()[None, :] >= SCORES[:, None]).sum(axis=1)) / 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peers():
    """The clients' own environment, made beside ours once for each list of versions: a minute and 500 MB."""
    folder = Path(sys.prefix) / "oip-clients" / hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", PINS]
        subprocess.run(pip, check=True, timeout=900)
        (folder / "done").touch()
    return python


@pytest.fixture(scope="module")
def ask(peers, fill, tmp_path_factory):
    """What a client makes of a service that asks for keys."""
    settings = fill(tmp_path_factory.mktemp("home"))
    with Registry.open(settings) as registry:
        key = Keys(registry.database).create("peer", ["admin"])
    with serving(settings) as client:

        def run(name):
            command = [peers, HERE / "oip_peer.py", name, f"127.0.0.1:{client.port}", key]
            done = subprocess.run(command, input=IMAGES.tobytes(), capture_output=True, timeout=120)
            assert done.returncode == 0, done.stderr.decode()[-3000:]
            return json.loads(done.stdout.splitlines()[-1])

        yield run


def check_verdicts(found):
    np.testing.assert_allclose(found["score"], SCORES, rtol=1e-6)
    np.testing.assert_allclose(found["p_value"], P_VALUES)
    assert found["anomalous"] == (SCORES > 190).tolist()
    assert found["status"] == ["anomalous" if s > 190 else "ok" for s in SCORES]
    np.testing.assert_allclose(found["map"], MAPS.ravel())


def test_tritonclient(ask):
    told = ask("triton")
    assert told["live"] and told["ready"]
    assert told["model_ready"] == [True, True, True, False, False]
    assert "binary_tensor_data" in told["server"]["extensions"]
    assert told["model"]["versions"] == ["1", "2"] and told["model"]["inputs"][0]["shape"] == [-1, 4, 4, 1]
    check_verdicts(told["infer_True"])
    check_verdicts(told["infer_False"])
    assert told["id"] == "42" and told["version"] == "2" and told["parameters"]["alpha"] == 0.5
    assert "map" not in told["outputs"] and told["outputs"][0] == "score"
    assert told["unjudged"] == ["nan", "ok", "unjudged"]
    assert [status for status, _ in told["errors"]] == ["404", "401", "422", "415", "504"]
    words = ("'nope'", "key", "FP32", "gzip", "deadline")
    for (_, sentence), word in zip(told["errors"], words, strict=True):
        assert word in sentence.lower() or word in sentence
    assert {e["state"] for e in told["index"]} == {"READY"} and len(told["index"]) == 4
    assert (told["unloaded"], told["loaded"]) == (False, True)
    for scores in told["aio"]:
        np.testing.assert_allclose(scores, SCORES, rtol=1e-6)
    assert len(told["aio"]) == 16


def test_kserve(ask):
    told = ask("kserve")
    assert told["live"] and told["ready"] and told["model_ready"] == [True, False]
    check_verdicts(told["infer_True"])
    check_verdicts(told["infer_False"])
    assert (told["id"], told["parameters"]["decide_by"]) == ("42", "score")
    assert [(status, sentence) for status, _, sentence in told["errors"]] == [(404, told["errors"][0][2])] * 2
    # Its exceptions show the sentence of an error in plain JSON only.
    assert told["errors"][0][2] in told["errors"][1][1] and "'nope'" in told["errors"][0][2]
