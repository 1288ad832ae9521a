"""What Prometheus reads. Every label is bounded: models that exist, routes, statuses and reasons that we name.

With several worker processes the client library keeps every number in files that they share (its multiprocess mode,
which `vaegis.service.processes.supervisor` turns on), so that any worker's page tells the whole, workers that have died
included.
"""

from __future__ import annotations

import os
import platform
import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from vaegis.models.scorer import ANOMALOUS, OK, UNJUDGED, Verdicts
from vaegis.service.serving.live import Live, Served
from vaegis.service.serving.shadow import MOMENTS, OUTCOMES, Comparison, correlation
from vaegis.service.store.registry import Resolved

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the client library's own variable: where workers share their numbers
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUED = (0.0001, 0.00025, 0.0005, *SECONDS)
BATCHES = tuple(float(2**i) for i in range(11))
# Clean samples fill these evenly, by the probabilities: a drifting process shows in the low ones first.
P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Scores have the model's own unit, so they are counted in clean interquartile ranges from the clean median. These can
# be negative, and a sum that can fall is no counter: it is left out.
SPREADS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
LATER = 256  # numbers that are written together
FEW = 16  # values that are counted one by one faster than as an array
SPREAD = "vaegis_score_spread"
WORKER = "worker"  # which process is which worker: read by the pages, not shown
HIDDEN = (WORKER, f"{SPREAD}_sum")


class ArrayHistogram(Histogram):
    """A histogram that takes whole arrays: the client library's takes one number at a time."""

    def add(self, values: NDArray[np.float64]) -> None:
        """Counts finite values."""
        bounds = self._upper_bounds
        if len(values) <= FEW:
            for value in values.tolist():
                self._buckets[bisect_left(bounds, value)].inc(1)
        else:
            found = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds))
            for i in np.flatnonzero(found).tolist():
                self._buckets[i].inc(int(found[i]))
        self._sum.inc(float(values.sum()))


@dataclass(frozen=True)
class Counts:
    """What is counted of one version, looked up once: to find a label's number takes longer than to raise it."""

    queue: ArrayHistogram  # seconds
    batch: ArrayHistogram  # samples
    inference: ArrayHistogram  # seconds
    decoding: ArrayHistogram  # seconds
    samples: dict[str, Counter]  # by status
    p_values: ArrayHistogram
    scores: ArrayHistogram


Scored = tuple[Served, list[str], NDArray[np.float64], NDArray[np.float64]]  # status, p-values and scores of an answer


class Metrics(Collector):
    """The metrics of one service; each app has its own registry."""

    def __init__(self, live: Live, version: str, worker: int = 0) -> None:
        """`worker`: the number of this process among those that share a socket."""
        self._live = live
        self._registry = r = CollectorRegistry()
        self._shared = SHARED in os.environ
        self.samples = Counter(
            "vaegis_samples_scored",
            "Samples judged, by verdict; unjudged ones could not be read or had no finite score.",
            ["model", "version", "status"],
            registry=r,
        )
        self._requests = ArrayHistogram(
            "vaegis_request_seconds",
            "Time from a request's first byte to its answer.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=r,
        )
        self.queue = _histogram(r, "vaegis_queue_seconds", "Time that a request's samples waited for a batch.", QUEUED)
        self.batch = _histogram(r, "vaegis_batch_size", "Samples in one call of a model's graph.", BATCHES)
        self.inference = _histogram(
            r, "vaegis_inference_seconds", "Time to score one request's samples, decoding left out.", SECONDS
        )
        self.decoding = _histogram(
            r, "vaegis_decoding_seconds", "Time to turn one request's body into samples.", SECONDS
        )
        self.rejected = Counter(
            "vaegis_requests_rejected", "Requests answered with an error, by reason.", ["reason"], registry=r
        )
        self.decoders_lost = Counter(
            "vaegis_decoders_lost",
            "Image decoders that died or were ended over an image, by reason.",
            ["reason"],
            registry=r,
        )
        self.p_values = ArrayHistogram(
            "vaegis_p_value",
            "Conformal p-values of judged samples, by the deciding term.",
            ["model"],
            buckets=P_VALUES,
            registry=r,
        )
        self.scores = ArrayHistogram(
            SPREAD,
            "Scores of judged samples, in clean interquartile ranges from the clean median.",
            ["model"],
            buckets=SPREADS,
            registry=r,
        )
        pair = ["model", "version", "shadow"]
        self._shadowed = Counter(
            "vaegis_shadow_samples",
            "Samples that a shadow scored too, by how its verdict compares with the champion's.",
            [*pair, "outcome"],
            registry=r,
        )
        self._moments = Counter(
            "vaegis_shadow_p_values",
            "Sums over those samples of the score's p-values by champion (p) and shadow (q), and of their products.",
            [*pair, "moment"],
            registry=r,
        )
        named = ["model", "version", "digest", "kind", "device"]
        self._models = _gauge(r, "vaegis_model_info", "Workers that have this version of a model open.", named, "sum")
        self._bytes = _gauge(r, "vaegis_model_bytes", "Memory of open versions, as estimated.", named[:2], "sum")
        self._state(version, worker)
        self._of: dict[str, Counts] = {}  # by place
        self._answered: dict[tuple[str, str, int], ArrayHistogram] = {}
        # Not yet written; taken from and added to by several threads.
        self._noted: deque[tuple[ArrayHistogram, float]] = deque()
        self._scored: deque[Scored] = deque()
        self._seen: set[tuple[str, ...]] = set()
        self._seeing = threading.Lock()
        live.opened.changed = self._see
        live.shadows.counting = self

    def count(self, served: Served, verdicts: Verdicts) -> None:
        """Counts every sample of an answer."""
        p_values, scores = verdicts.p_values[verdicts.decision.decide_by], verdicts.evidence["score"]
        if verdicts.errors:
            judged = np.array([s != UNJUDGED for s in verdicts.status])
            p_values, scores = p_values[judged], scores[judged]
        self._scored.append((served, verdicts.status, p_values, scores))
        if self._shared or len(self._scored) >= LATER:
            self._write()

    def note(self, histogram: ArrayHistogram, value: float) -> None:
        """Observes a value."""
        self._noted.append((histogram, value))
        if self._shared or len(self._noted) >= LATER:
            self._write()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observes an answered request."""
        named = (method, route, status)
        found = self._answered.get(named)
        if found is None:
            found = self._answered[named] = self._requests.labels(method, route, str(status))
        self.note(found, seconds)

    def _write(self) -> None:
        """Brings the client library's numbers up to date. Many at once take little longer than one; but other processes
        do not wait for a page of ours."""
        noted: dict[ArrayHistogram, list[float]] = {}
        with suppress(IndexError):
            while True:
                histogram, value = self._noted.popleft()
                noted.setdefault(histogram, []).append(value)
        for histogram, values in noted.items():
            histogram.add(np.array(values))
        scored: dict[str, list[Scored]] = {}
        with suppress(IndexError):
            while True:
                one = self._scored.popleft()
                scored.setdefault(one[0].resolved.place, []).append(one)
        for many in scored.values():
            served = many[0][0]
            of = self.of(served)
            for status, n in Tally(chain.from_iterable(m[1] for m in many)).items():
                of.samples[status].inc(n)
            of.p_values.add(np.concatenate([m[2] for m in many]))
            of.scores.add((np.concatenate([m[3] for m in many]) - served.median) / served.spread)

    def of(self, served: Served) -> Counts:
        """The metrics of a version."""
        found = self._of.get(served.resolved.place)
        if found is None:
            name, version = served.resolved.name, str(served.resolved.version)
            found = self._of[served.resolved.place] = Counts(
                queue=self.queue.labels(name),
                batch=self.batch.labels(name),
                inference=self.inference.labels(name),
                decoding=self.decoding.labels(name),
                samples={s: self.samples.labels(name, version, s) for s in (OK, ANOMALOUS, UNJUDGED)},
                p_values=self.p_values.labels(name),
                scores=self.scores.labels(name),
            )
        return found

    def shadowed(
        self, champion: Resolved, shadow: Resolved, outcomes: dict[str, int], moments: dict[str, float]
    ) -> None:
        """Counts samples that a shadow scored too, or was too slow for."""
        pair = _pair(champion, shadow)
        for outcome, n in outcomes.items():
            if n:
                self._shadowed.labels(*pair, outcome).inc(n)
        for moment, total in moments.items():
            self._moments.labels(*pair, moment).inc(total)

    def comparison(self, champion: Resolved, shadow: Resolved) -> Comparison:
        """What a shadow has shown so far, in all workers."""
        pair = _pair(champion, shadow)
        samples, moments = dict.fromkeys(OUTCOMES, 0), dict.fromkeys(MOMENTS, 0.0)
        for family in self.collect():
            for s in family.samples:
                if tuple(s.labels.get(k) for k in ("model", "version", "shadow")) != pair:
                    continue
                if s.name == "vaegis_shadow_samples_total":
                    samples[s.labels["outcome"]] = int(s.value)
                elif s.name == "vaegis_shadow_p_values_total":
                    moments[s.labels["moment"]] = s.value
        judged = sum(samples[o] for o in OUTCOMES[:3])
        return Comparison(samples, correlation(judged, moments))

    def page(self) -> bytes:
        """In Prometheus's text format."""
        shown = CollectorRegistry()
        shown.register(self)
        return generate_latest(shown)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is, is not collected twice."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything counted, in all workers."""
        self._see()
        self._write()
        found = MultiProcessCollector(None).collect() if self._shared else self._registry.collect()  # type: ignore[no-untyped-call]
        pids: dict[str, int] = {}
        for family in found:
            if family.name == WORKER:
                pids = {s.labels["worker"]: int(s.value) for s in family.samples}
            # A version that was closed, in every worker, is not shown as one that zero workers hold.
            family.samples = [
                s
                for s in family.samples
                if s.name not in HIDDEN and (s.value or family.name not in ("vaegis_model_info", "vaegis_model_bytes"))
            ]
            if family.name != WORKER:
                yield family
        if self._shared:
            yield from _processes(pids)
        else:
            yield from ProcessCollector(namespace="vaegis", registry=None).collect()

    def _state(self, version: str, worker: int) -> None:
        """What stays so as long as the process runs."""
        r, placed = self._registry, self._live.placed
        labels = {"version": version, "python": platform.python_version()}
        _gauge(r, "vaegis_build_info", "Always 1; the labels tell the version.", list(labels)).labels(**labels).set(1)
        in_use = _gauge(r, "vaegis_device_in_use", "Always 1; tells where graphs run.", ["device"])
        in_use.labels(placed.device).set(1)
        fallback = _gauge(r, "vaegis_device_fallback", "1 where device auto runs on the CPU.", [])
        fallback.set(placed.fallback is not None)
        _gauge(r, WORKER, "Process of a worker.", ["worker"]).labels(str(worker)).set(os.getpid())

    def _see(self) -> None:
        """Brings up to date which versions this process has open."""
        with self._seeing:
            seen: set[tuple[str, ...]] = set()
            for s in self._live.opened.all():
                name, version = s.resolved.name, str(s.resolved.version)
                seen.add((name, version, s.resolved.digest, s.scorer.spec.kind, s.scorer.device))
                self._bytes.labels(name, version).set(s.bytes)
                s.batcher.ran = partial(self.note, self.of(s).batch)
            for labels in seen | self._seen:
                self._models.labels(*labels).set(labels in seen)
                if labels not in seen:
                    self._bytes.labels(*labels[:2]).set(0)
            self._seen = seen


def _histogram(r: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]) -> ArrayHistogram:
    return ArrayHistogram(name, text, ["model"], buckets=buckets, registry=r)


def _gauge(r: CollectorRegistry, name: str, text: str, labels: list[str], over: str = "max") -> Gauge:
    """A gauge that several workers show as one: the largest of theirs, or their sum."""
    mode = "livesum" if over == "sum" else "livemax"
    return Gauge(name, text, labels, multiprocess_mode=mode, registry=r)  # type: ignore[arg-type]


def _pair(champion: Resolved, shadow: Resolved) -> tuple[str, str, str]:
    return champion.name, str(champion.version), str(shadow.version)


def _processes(pids: dict[str, int]) -> Iterator[Metric]:
    """CPU, memory and files of each worker, by its number."""
    whole: dict[str, Metric] = {}
    for worker, pid in sorted(pids.items()):
        for family in ProcessCollector(namespace="vaegis", pid=partial(int, pid), registry=None).collect():
            kept = whole.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            kept.samples += [Sample(s.name, {**s.labels, "worker": worker}, s.value) for s in family.samples]
    yield from whole.values()
