"""Scoring over a real socket: every number against one worked out here."""

import base64
import io
import json
import random

import numpy as np
import pyarrow as pa
import pytest
from http_server import JSON, NPY, OCTETS, multipart
from PIL import Image

from toy_bundles import calibration_scores
from vaegis.models.calibration import fit_tail
from vaegis.models.outputs.colours import to_png

rng = np.random.default_rng(0)
IMAGES = rng.integers(80, 121, (5, 4, 4, 1), dtype=np.uint8)
SCORES = ((IMAGES.astype(float) - 100) ** 2).mean(axis=(1, 2, 3))


def p_value(scores, n=199):
    return (1 + np.sum(calibration_scores(n)[None, :] >= np.atleast_1d(scores)[:, None], axis=1)) / (n + 1)


def png(image):
    out = io.BytesIO()
    Image.fromarray(image[..., 0]).save(out, "PNG")
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def forms():
    form, kind = multipart([(f"{i}.png", png(x)) for i, x in enumerate(IMAGES)])
    return {
        "json": (json.dumps({"data": IMAGES[..., 0].tolist()}).encode(), JSON),
        "octets": (IMAGES.tobytes(), OCTETS),
        "npy": (npy(IMAGES), NPY),
        "files": (form, kind),
    }


@pytest.mark.parametrize("form", ["json", "octets", "npy", "files"])
def test_answers_equal_those_worked_out_by_hand(client, form):
    status, answer = client.score("image", *forms()[form])
    assert status == 200, answer
    assert list(answer) == [
        "model", "version", "digest", "kind", "decide_by", "alpha", "threshold", "extrapolated", "results",
    ]  # fmt: skip
    assert (answer["model"], answer["version"], answer["kind"], answer["alpha"]) == ("image", 1, "image", 0.05)
    # alpha 0.05 of 199: p <= 0.05 when at most 9 clean values reach the score, so above the 10th largest, 190.
    assert (answer["decide_by"], answer["threshold"], answer["extrapolated"]) == ("score", 190.0, False)
    results = answer["results"]
    assert [r["index"] for r in results] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([r["score"] for r in results], SCORES, rtol=1e-6)
    np.testing.assert_array_equal([r["p_value"] for r in results], p_value(SCORES))
    for r, s in zip(results, SCORES, strict=True):
        assert r["anomalous"] is bool(s > 190)
        assert r["status"] == ("anomalous" if s > 190 else "ok")
        assert set(r["evidence"]) == {"reconstruction_error", "negative_elbo"}
        assert r["evidence"]["negative_elbo"]["value"] == pytest.approx(2 * s + 1)
        assert r["evidence"]["negative_elbo"]["p_value"] == p_value(s)[0]
        assert "map" not in r and "warmup" not in r and "timestamp" not in r
    assert [r.get("item") for r in results] == ([f"{i}.png" for i in range(5)] if form == "files" else [None] * 5)


def test_the_tail_tells_what_the_conformal_p_value_cannot(client):
    body = {"data": [[20.0, 20.0, 20.0]]}  # score 400, beyond every clean value
    (found,) = client.score("vector", body)[1]["results"]
    assert found["p_value"] == 1 / 200
    assert found["p_tail"] == pytest.approx(float(fit_tail(calibration_scores()).p(np.array([400.0]))[0]), rel=1e-9)
    _, answer = client.score("vector", body, query="?alpha=0.001")
    assert answer["extrapolated"] is True and answer["threshold"] > 199


def test_controls_decide_without_changing_scores(client):
    body = (IMAGES.tobytes(), OCTETS)
    _, answer = client.score("image", *body, query="?threshold=1e30")
    assert (answer["alpha"], answer["threshold"]) == (None, 1e30)
    assert not any(r["anomalous"] for r in answer["results"])
    _, answer = client.score("image", *body, query="?threshold=-1")
    assert all(r["anomalous"] for r in answer["results"])
    _, answer = client.score("image", *body, query="?decide_by=negative_elbo&alpha=0.5")
    assert answer["threshold"] == 2 * 100 + 1  # the 100th largest of 199
    assert [r["anomalous"] for r in answer["results"]] == (SCORES > 100).tolist()
    _, answer = client.score("image@2", *body)
    assert (answer["version"], answer["alpha"], answer["threshold"]) == (2, 0.1, 180.0)


def test_maps(client):
    _, answer = client.score("image", IMAGES.tobytes(), OCTETS, "?maps=array")
    for r, x in zip(answer["results"], IMAGES, strict=True):
        assert (r["map"]["shape"], r["map"]["dtype"]) == ([4, 4], "float32")
        found = np.frombuffer(base64.b64decode(r["map"]["data"]), "<f4").reshape(4, 4)
        np.testing.assert_array_equal(found, (x[..., 0].astype(np.float32) - 100) ** 2)
    _, answer = client.score("image", IMAGES[:1].tobytes(), OCTETS, "?maps=png")
    want = to_png((IMAGES[0, ..., 0].astype(np.float32) - 100) ** 2, (0.0, 100.0))
    assert base64.b64decode(answer["results"][0]["map"]["png"]) == want


def test_a_broken_image_among_good_ones_is_unjudged_in_its_place(client):
    form, kind = multipart([("a.png", png(IMAGES[0])), ("b.png", png(IMAGES[1])[:40]), ("c.png", png(IMAGES[2]))])
    before = client.metrics("vaegis_samples_scored_total")
    status, answer = client.score("image", form, kind)
    assert status == 200
    assert [r["status"] == "unjudged" for r in answer["results"]] == [False, True, False]
    bad = answer["results"][1]
    assert set(bad) == {"index", "item", "status", "error"}
    assert bad["item"] == "b.png" and "b.png" in bad["error"]["detail"]
    after = client.metrics("vaegis_samples_scored_total")
    label = '{model="image",status="unjudged",version="1"}'
    assert after[label] - before.get(label, 0) == 1


def test_a_score_that_is_not_finite_is_an_error_and_never_clean(client):
    status, answer = client.score("vector", {"data": [[1e30, 0, 0], [1, 1, 1]]})
    assert status == 200
    assert answer["results"][0]["status"] == "unjudged" and "score" not in answer["results"][0]
    assert "finite" in answer["results"][0]["error"]["detail"]
    assert answer["results"][1]["score"] == 1.0
    status, answer = client.score("vector", {"data": [[1e30, 0, 0]]})
    assert status == 422 and "finite" in answer["detail"]


def test_vectors_by_name_in_json_and_arrow(client):
    rows = [{"c": 3.0, "a": 1.0, "extra": 9.0, "b": 2.0}]
    stream = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    _, arrow = client.score("vector", stream.getvalue(), "application/vnd.apache.arrow.stream")
    _, named = client.score("vector", {"data": [[3, 1, 9, 2]], "columns": ["c", "a", "extra", "b"], "items": ["x"]})
    assert arrow["results"][0]["score"] == named["results"][0]["score"] == np.float32(14 / 3)
    assert named["results"][0]["item"] == "x"


def test_series_rows_events_and_guilty_channels(client):
    x = np.ones((40, 2))
    x[20:24, 1] = 40.0  # flow leaps for four rows
    stamps = [f"2026-01-01T00:00:{i:02d}" for i in range(40)]
    body = {"data": x[:, ::-1].tolist(), "columns": ["flow", "speed"], "timestamps": stamps}
    status, answer = client.score("series", body)
    assert status == 200 and len(answer["results"]) == 40
    windows = np.stack([(x[i : i + 4] ** 2).mean() for i in range(37)])
    want = np.concatenate([np.full(3, windows[0]), windows])
    np.testing.assert_allclose([r["score"] for r in answer["results"]], want, rtol=1e-6)
    assert [r["warmup"] for r in answer["results"]] == [True] * 3 + [False] * 37
    assert [r["timestamp"] for r in answer["results"]] == stamps
    strange = np.flatnonzero(want > 190)
    assert strange.tolist() == list(range(20, 27))  # one leaping row in a window gives 200.875
    (event,) = answer["events"]
    assert (event["start"], event["end"], event["peak"]) == (20, 26, 23)
    assert event["peak_score"] == pytest.approx((4 * 1600 + 4) / 8)
    assert (event["start_timestamp"], event["end_timestamp"]) == (stamps[20], stamps[26])
    assert event["channels"] == ["flow", "speed"]
    assert client.score("series", body, query="?threshold=1e9")[1]["events"] == []


def test_windows_make_no_events(client):
    _, answer = client.score("series", {"data": np.full((5, 4, 2), 40.0).tolist()})
    assert [r["anomalous"] for r in answer["results"]] == [True] * 5
    assert answer["events"] == []


def test_two_items_make_their_own_events(client):
    csv = "speed,flow\n" + "1,1\n" * 6 + "1,40\n" * 4
    form, kind = multipart([("a.csv", csv.encode()), ("b.csv", csv.encode())])
    _, answer = client.score("series", form, kind)
    assert [(e["item"], e["start"], e["end"]) for e in answer["events"]] == [("a.csv", 6, 9), ("b.csv", 6, 9)]
    assert [r["index"] for r in answer["results"]] == [*range(10), *range(10)]


BAD = {
    "broken json": (b"{", JSON, "", 400, "JSON"),
    "json of another kind": (b"[1]", JSON, "", 400, "object"),
    "no data": (b"{}", JSON, "", 400, "data"),
    "text for data": (b'{"data": "no"}', JSON, "", 400, "no"),
    "ragged": (b'{"data": [[1,2],[3]]}', JSON, "", 400, "ragged"),
    "NaN": (b'{"data": [[[NaN]]]}', JSON, "", 400, "NaN"),
    "half an image": (b"abc", OCTETS, "", 400, "16 bytes"),
    "nothing": (b"", OCTETS, "", 400, "0 bytes"),
    "no npy": (b"not npy", NPY, "", 400, "npy"),
    "unknown type": (b"x", "text/unknown", "", 415, "text/unknown"),
    "no type": (b"x", "", "", 415, "Content-Type"),
    "empty form": (b"--vg--", "multipart/form-data; boundary=vg", "", 400, "no file"),
    "no boundary": (b"junk", "multipart/form-data", "", 400, "boundary"),
    "junk form": (b"junk", "multipart/form-data; boundary=vg", "", 400, "multipart"),
    "unfinished form": (multipart([("a.png", b"x")])[0][:-12], "multipart/form-data; boundary=vg", "", 400, "closing"),
    "another field": (*multipart([("a.png", b"x")], "image"), "", 400, "'image'"),
    "only a broken image": (*multipart([("a.png", b"x")]), "", 422, "a.png"),
    "no image": (*multipart([("ä日.txt", b"x")]), "", 400, ""),
    "another size": (b'{"data": [[[0]]]}', JSON, "", 422, "4x4"),
    "alpha out of range": (b"x" * 16, OCTETS, "?alpha=7", 422, "alpha"),
    "alpha no number": (b"x" * 16, OCTETS, "?alpha=nan", 422, "alpha"),
    "alpha too small": (b"x" * 16, OCTETS, "?alpha=1e-9", 422, "999999999"),
    "alpha and threshold": (b"x" * 16, OCTETS, "?alpha=.1&threshold=3", 422, "Both"),
    "unknown term": (b"x" * 16, OCTETS, "?decide_by=luck", 422, "negative_elbo"),
    "unknown group": (b"x" * 16, OCTETS, "?group=night", 422, "night"),
    "unknown control": (b"x" * 16, OCTETS, "?apha=.1", 422, "alpha"),
    "control given twice": (b"x" * 16, OCTETS, "?alpha=.1&alpha=.2", 422, "2 times"),
    "unknown maps": (b"x" * 16, OCTETS, "?maps=gif", 422, "png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_with_a_sentence(client, case):
    body, kind, query, want, word = BAD[case]
    status, headers, raw = client.call("POST", f"/v1/models/image/score{query}", body, kind or None)
    problem = json.loads(raw)
    if case == "no image":  # a refusal of the request or of its one sample: both are right
        want = status if status in (400, 415, 422) else want
    assert (status, problem["status"]) == (want, want), problem
    assert headers["Content-Type"] == "application/problem+json"
    assert problem["request_id"] == headers["X-Request-ID"]
    assert word in problem["detail"] and len(problem["detail"]) > 10 and problem["detail"].endswith(".")
    text = raw.decode()
    assert "Traceback" not in text and "/tmp" not in text and "site-packages" not in text
    assert client.get("/readyz")[0] == 200


def test_no_mutation_of_a_good_request_breaks_the_service(client):
    """Bytes changed, dropped and put in: refused or answered, never a 500, and never a verdict without a score."""
    chance = random.Random(0)
    seeds = [("image", *form) for form in forms().values()]
    seeds.append(("series", *multipart([("a.csv", b"speed,flow\n1,2\n3,4\n5,6\n1,1\n1,1\n")])))
    seeds.append(("vector", b'{"data":[[1,2,3]],"columns":["a","b","c"],"items":["x"]}', JSON))
    for _ in range(300):
        model, good, kind = chance.choice(seeds)
        body = bytearray(good)
        for _ in range(chance.choice((1, 1, 3, 20))):
            i = chance.randrange(len(body) or 1)
            body[i : i + chance.choice((0, 1, 1, 20))] = chance.randbytes(chance.choice((0, 1, 1, 8)))
        status, answer = client.score(model, bytes(body), kind)
        assert status in (200, 400, 413, 415, 422), (status, answer, bytes(body))
        if status == 200:
            assert all(r["status"] == "unjudged" or np.isfinite(r["score"]) for r in answer["results"])


def test_a_body_that_is_encoded_is_not_read(client):
    status, problem = client.score("image", b"x" * 16, OCTETS, headers={"Content-Encoding": "gzip"})
    assert status == 415 and "gzip" in problem["detail"]
