"""A second version beside the champion: as its shadow, or as the canary of a share of requests."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from http_server import JSON, serving, until
from live_models import live_models

from toy_bundles import VECTOR, toy_bundle
from vaegis.models.blocks import plain
from vaegis.models.calibration import decide
from vaegis.service.serving.observers import Timing
from vaegis.service.serving.shadow import Shadows, compare, correlation
from vaegis.service.store.registry import Registry
from vaegis.service.store.servings import Servings

PUT = {"Content-Type": JSON}
SOON = Timing(queue=0.0, inference=0.0)


@pytest.fixture
def home(fill, tmp_path):
    """A home whose model vector has a second version, calibrated on 99 clean samples 1 ... 99 instead of 199."""
    settings = fill(tmp_path / "home")
    toy_bundle(tmp_path / "strict", VECTOR, n=99, doc="strict")
    with Registry.open(settings) as registry:
        registry.add("vector", tmp_path / "strict")
    return settings


def ask(client, method, path, body=None):
    status, _, raw = client.call(method, f"/v1/models/vector/{path}", None if body is None else json.dumps(body), JSON)
    return status, json.loads(raw)


def rows(*scores):
    """Vectors whose score, their mean square, is as given."""
    return {"data": [[s**0.5] * 3 for s in scores]}


def test_a_shadow_is_compared_and_never_returned(home):
    with serving(home) as client:
        assert ask(client, "GET", "shadow")[0] == 404
        assert ask(client, "PUT", "shadow", {"version": 2})[1]["shadow"] == 2
        # At 5 % the champion calls anomalous what exceeds 190, the shadow what exceeds 95.
        status, answer = client.score("vector", rows(10, 50, 100, 150, 191.5, 300))
        assert status == 200 and answer["version"] == 1
        assert [r["anomalous"] for r in answer["results"]] == [False] * 4 + [True] * 2
        client.score("vector", {"data": [[1, 1, 1], [None, 1, 1]]})
        until(lambda: ask(client, "GET", "shadow")[1]["unjudged"] == 1)
        found = ask(client, "GET", "shadow")[1]
        assert (found["champion"], found["shadow"], found["samples"]) == (1, 2, 7)
        assert (found["only_shadow"], found["only_champion"], found["dropped"]) == (2, 0, 0)
        assert found["agreement"] == pytest.approx(5 / 7)
        # p-values of scores 10, 50, ..., 1, by hand: (1 + clean scores at least as large) / (n + 1).
        p = np.array([191, 151, 101, 51, 9, 1, 200]) / 200
        q = np.array([91, 51, 1, 1, 1, 1, 100]) / 100
        close = np.corrcoef(p, q)[0, 1]
        assert found["rank_correlation"] == pytest.approx(close, abs=0.01)
        counted = client.metrics("vaegis_shadow_samples_total")
        at = '{model="vector",outcome="%s",shadow="2",version="1"}'
        assert (counted[at % "agree"], counted[at % "only_shadow"], counted[at % "unjudged"]) == (5, 2, 1)
        assert client.metrics("vaegis_samples_scored_total")['{model="vector",status="ok",version="1"}'] == 5
        # Whoever names the shadow's version is not scored twice.
        assert client.score("vector@2", rows(10))[1]["version"] == 2
        assert ask(client, "DELETE", "shadow")[1]["shadow"] is None
        client.score("vector", rows(1))
        assert ask(client, "GET", "shadow")[0] == 404


def test_a_canary_over_http_answers_by_request_id_and_ends_with_the_promotion(home):
    with serving(home) as client:
        assert ask(client, "PUT", "canary", {"version": 2, "share": 0.5})[1] == {
            "loaded": True, "canary": 2, "share": 0.5, "shadow": None,
        }  # fmt: skip
        said = [client.score("vector", rows(1), headers={"X-Request-ID": f"r{i % 20}"})[1] for i in range(40)]
        versions = [a["version"] for a in said]
        assert set(versions) == {1, 2} and versions[:20] == versions[20:]
        digests = {v["version"]: v["digest"] for v in client.get("/v1/models/vector")[1]["versions"]}
        assert all(a["digest"] == digests[a["version"]] for a in said)
        assert ask(client, "POST", "promote", {"version": 2})[0] == 200
        assert client.get("/v1/models/vector")[1]["serving"]["canary"] is None
        assert {client.score("vector", rows(1))[1]["version"] for _ in range(10)} == {2}


def test_trials_over_http_refuse_with_a_sentence(home):
    with serving(home) as client:
        for method, path, body, status, word in (
            ("PUT", "canary", {"version": 2, "share": 1.5}, 422, "share"),
            ("PUT", "canary", {"version": 2}, 422, "share"),
            ("PUT", "canary", {"version": 1, "share": 0.5}, 422, "champion"),
            ("PUT", "canary", {"version": 9, "share": 0.5}, 404, "'9'"),
            ("PUT", "shadow", {"version": "champion"}, 422, "champion"),
            ("PUT", "shadow", {"version": 2, "share": 0.5}, 422, "share"),
            ("PUT", "shadow", {"version": True}, 422, "version"),
            ("PUT", "shadow", ["x"], 422, ""),
            ("POST", "shadow", {"version": 2}, 405, "POST"),
        ):
            got, problem = ask(client, method, path, body)
            assert got == status and word in problem["detail"], problem
        status, _, raw = client.call("PUT", "/v1/models/vector@2/shadow", b'{"version": 2}', JSON)
        assert status == 422 and b"'vector@2' names one version" in raw


def test_requests_with_a_threshold_of_their_own_and_those_behind_are_dropped(home):
    class Counting:
        dropped = 0

        def count_shadow(self, champion, shadow, outcomes, moments):
            self.dropped += outcomes.get("dropped", 0)

    with Registry.open(home) as registry:
        live = live_models(registry)
        served, rival = live.get("vector"), registry.resolve("vector@2")
        gate, counting = threading.Event(), Counting()

        def opening(resolved):
            assert gate.wait(30)
            return live.opener.open(resolved)

        shadows = Shadows(opening, counting, queue_most=2)
        block = plain(np.ones((5, 3), np.float32))
        verdicts = served.scorer.verdicts(block, decide(served.scorer.calibration, 0.05))
        shadows.verdicts_given(served, verdicts, SOON)
        assert counting.dropped == 0  # no shadow: nothing to drop
        shadows.assign(served.resolved, rival)
        of_its_own = decide(served.scorer.calibration, None, 100.0)
        shadows.verdicts_given(served, replace(verdicts, decision=of_its_own), SOON)
        assert counting.dropped == 5
        for _ in range(10):
            shadows.verdicts_given(served, verdicts, SOON)
        # One may be with the thread, two wait; each of the others left its five samples at once.
        assert counting.dropped in (5 + 7 * 5, 5 + 8 * 5)
        gate.set()
        shadows.stop()


def test_comparison_and_correlation_by_hand():
    with_one = correlation(3, {"p": 6.0, "q": 12.0, "pp": 14.0, "qq": 56.0, "pq": 28.0})  # q = 2 p, p = 1, 2, 3
    assert with_one == pytest.approx(1.0)
    assert correlation(1, dict.fromkeys(("p", "q", "pp", "qq", "pq"), 1.0)) is None
    assert correlation(2, {"p": 2.0, "q": 3.0, "pp": 2.0, "qq": 5.0, "pq": 3.0}) is None  # p = 1, 1 does not vary


def test_compare_leaves_out_what_either_could_not_judge(home):
    with Registry.open(home) as registry:
        live = live_models(registry)
        one, two = live.get("vector").scorer, live.get("vector@2").scorer
        block = plain(np.array([[10.0] * 3, [1e30] * 3], np.float32))
        ours, theirs = (s.verdicts(block, decide(s.calibration, 0.05)) for s in (one, two))
        outcomes, moments = compare([ours], theirs)
        assert outcomes == {"agree": 0, "only_shadow": 1, "only_champion": 0, "unjudged": 1}
        assert moments["p"] == pytest.approx(101 / 200) and moments["q"] == pytest.approx(1 / 100)


def test_servings_are_seen_by_every_registry_of_the_store(home):
    with Registry.open(home) as one, Registry.open(home) as two:
        Servings(one).shadow("vector", 2, "ann")
        assert Servings(two).of("vector").shadow == 2
        two.promote("vector", 2)
        assert Servings(one).of("vector").shadow is None


def test_trials_by_the_command_line(home):
    def vaegis(*args):
        return subprocess.run(
            [Path(sys.executable).parent / "vaegis", "models", *args], capture_output=True, text=True, timeout=60,
            env={**os.environ, "VAEGIS_HOME": str(home.home)},
        )  # fmt: skip

    (home.home.parent / "clean.csv").write_text("a,b,c\n" + "1.5,2.5,3.5\n" * 120)
    assert json.loads(vaegis("shadow", "vector@2", "--json").stdout) == {
        "name": "vector", "canary": None, "share": 0.0, "shadow": 2,
    }  # fmt: skip
    done = vaegis("canary", "vector@2", "--share", "0.05")
    assert done.returncode == 0 and "version 2 answers 0.05 of its requests" in done.stdout
    with Registry.open(home) as registry:
        assert (Servings(registry).of("vector").canary, Servings(registry).of("vector").shadow) == (2, 2)
    assert "no canary now" in vaegis("canary", "vector", "--end").stdout
    for args, word in (
        (("canary", "vector", "--share", "0.1"), "vector@2"),
        (("canary", "vector@2", "--share", "2"), "share"),
        (("shadow", "vector@1"), "champion"),
        (("half", str(home.home.parent / "clean.csv"), "--model", "vector"), "no convolution or matrix product"),
    ):
        done = vaegis(*args)
        assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr, done.stderr
