"""What Prometheus reads. Every label is bounded: models that exist, routes, statuses and reasons that we name.

With several worker processes the client library keeps every number in files that they share (its multiprocess mode,
which `vaegis.service.processes.supervisor` turns on), so that any worker's page tells the whole, workers that have died
included.
"""

from __future__ import annotations

import os
import platform
import struct
import threading
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from vaegis.models.runtime.sessions import DeviceInUse
from vaegis.models.scorer import ANOMALOUS, OK, UNJUDGED, Verdicts
from vaegis.service.serving.observers import Timing
from vaegis.service.serving.served import OpenVersions, Served
from vaegis.service.serving.shadow import MOMENTS, OUTCOMES, ShadowComparison, correlation
from vaegis.service.store.registry import Resolved

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the client library's own variable: where workers share their numbers
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUE_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
BATCHES = tuple(float(2**i) for i in range(11))
# Clean samples fill these evenly, by the probabilities: a drifting process shows in the low ones first.
P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Scores have the model's own unit, so they are counted in clean interquartile ranges from the clean median. These can
# be negative, and a sum that can fall is no counter: it is left out.
SPREADS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
LATER = 256  # numbers that are written together
FEW = 16  # values that are counted one by one faster than as an array
SPREAD = "vaegis_score_spread"
SUM: Literal["livesum"] = "livesum"  # of gauges: over the workers that live
READS, READ_SECONDS = 20, 0.01  # tries to read the files of all workers, and the time between
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
            filled = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds))
            for i in np.flatnonzero(filled).tolist():
                self._buckets[i].inc(int(filled[i]))
        self._sum.inc(float(values.sum()))


@dataclass(frozen=True)
class ModelMetrics:
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
    """The metrics of one service; each app has its own registry. An observer of verdicts."""

    def __init__(self, versions: OpenVersions, placed: DeviceInUse, release: str, worker: int = 0) -> None:
        """
        Args:
            versions: those that this process has open, now and later.
            placed: where graphs run.
            worker: the number of this process among those that share a socket.
        """
        self._versions = versions
        self._registry = CollectorRegistry()
        self._shared = SHARED in os.environ
        self._samples = self._counter(
            "vaegis_samples_scored",
            "Samples judged, by verdict; unjudged ones could not be read or had no finite score.",
            ["model", "version", "status"],
        )
        self._requests = self._histogram(
            "vaegis_request_seconds",
            "Time from a request's first byte to its answer.",
            SECONDS,
            ["method", "route", "status"],
        )
        self._queue = self._histogram(
            "vaegis_queue_seconds", "Time that a request's samples waited for a batch.", QUEUE_SECONDS
        )
        self._batch = self._histogram("vaegis_batch_size", "Samples in one call of a model's graph.", BATCHES)
        self._inference = self._histogram(
            "vaegis_inference_seconds", "Time to score one request's samples, decoding left out.", SECONDS
        )
        self._decoding = self._histogram(
            "vaegis_decoding_seconds", "Time to turn one request's body into samples.", SECONDS
        )
        self._rejected = self._counter(
            "vaegis_requests_rejected", "Requests answered with an error, by reason.", ["reason"]
        )
        self._decoders_lost = self._counter(
            "vaegis_decoders_lost", "Image decoders that died or were ended over an image, by reason.", ["reason"]
        )
        self._p_values = self._histogram(
            "vaegis_p_value", "Conformal p-values of judged samples, by the deciding term.", P_VALUES
        )
        self._scores = self._histogram(
            SPREAD, "Scores of judged samples, in clean interquartile ranges from the clean median.", SPREADS
        )
        self._failures = self._counter(
            "vaegis_open_failures", "Times that a version could not be opened.", ["model", "version"]
        )
        self._make_shadow_counters()
        labels = ["model", "version", "digest", "kind", "device"]
        self._models = self._gauge("vaegis_model_info", "Workers that have this version of a model open.", labels, SUM)
        self._bytes = self._gauge("vaegis_model_bytes", "Memory of open versions, as estimated.", labels[:2], SUM)
        self._set_constants(placed, release, worker)
        self._counts: dict[str, ModelMetrics] = {}  # by place
        self._by_answer: dict[tuple[str, str, int], ArrayHistogram] = {}
        # Not yet written; taken from and added to by several threads.
        self._values: deque[tuple[ArrayHistogram, float]] = deque()
        self._scored: deque[Scored] = deque()
        self._shown: set[tuple[str, ...]] = set()  # labels of the versions that were open at the last look
        self._looking = threading.Lock()

    def verdicts_given(self, served: Served, verdicts: Verdicts, timing: Timing) -> None:
        """Counts every sample of an answer, and the time that it took."""
        counts = self.counts(served.resolved)
        self._note(counts.queue, timing.queue)
        self._note(counts.inference, timing.inference)
        p_values, scores = verdicts.p_values[verdicts.decision.decide_by], verdicts.evidence["score"]
        if verdicts.errors:
            judged = np.array([s != UNJUDGED for s in verdicts.status])
            p_values, scores = p_values[judged], scores[judged]
        self._scored.append((served, verdicts.status, p_values, scores))
        if self._shared or len(self._scored) >= LATER:
            self._write()

    def samples_read(self, served: Served, seconds: float) -> None:
        """Observes how long a body took to become samples."""
        self._note(self.counts(served.resolved).decoding, seconds)

    def reject(self, reason: str) -> None:
        """Counts a request that was answered with an error."""
        self._rejected.labels(reason).inc()

    def lose_decoder(self, reason: str) -> None:
        """Counts a decoder that was lost over an image."""
        self._decoders_lost.labels(reason).inc()

    def fail_to_open(self, resolved: Resolved) -> None:
        """Counts a version that could not be opened."""
        self._failures.labels(resolved.name, str(resolved.version)).inc()

    def call_sizes(self, resolved: Resolved) -> Callable[[int], None]:
        """What observes the size of every graph call of a version."""
        return partial(self._note, self.counts(resolved).batch)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observes an answered request."""
        key = (method, route, status)
        histogram = self._by_answer.get(key)
        if histogram is None:
            histogram = self._by_answer[key] = self._requests.labels(method, route, str(status))
        self._note(histogram, seconds)

    def _note(self, histogram: ArrayHistogram, value: float) -> None:
        """Observes a value."""
        self._values.append((histogram, value))
        if self._shared or len(self._values) >= LATER:
            self._write()

    def _write(self) -> None:
        """Brings the client library's numbers up to date. Many at once take little longer than one; but other processes
        do not wait for a page of ours."""
        values: dict[ArrayHistogram, list[float]] = {}
        with suppress(IndexError):
            while True:
                histogram, value = self._values.popleft()
                values.setdefault(histogram, []).append(value)
        for histogram, several in values.items():
            histogram.add(np.array(several))
        scored: dict[str, list[Scored]] = {}
        with suppress(IndexError):
            while True:
                answer = self._scored.popleft()
                scored.setdefault(answer[0].resolved.place, []).append(answer)
        for many in scored.values():
            served = many[0][0]
            counts = self.counts(served.resolved)
            for status, n in Tally(chain.from_iterable(m[1] for m in many)).items():
                counts.samples[status].inc(n)
            counts.p_values.add(np.concatenate([m[2] for m in many]))
            counts.scores.add((np.concatenate([m[3] for m in many]) - served.median) / served.spread)

    def counts(self, resolved: Resolved) -> ModelMetrics:
        """The metrics of a version."""
        counts = self._counts.get(resolved.place)
        if counts is None:
            name, version = resolved.name, str(resolved.version)
            counts = self._counts[resolved.place] = ModelMetrics(
                queue=self._queue.labels(name),
                batch=self._batch.labels(name),
                inference=self._inference.labels(name),
                decoding=self._decoding.labels(name),
                samples={s: self._samples.labels(name, version, s) for s in (OK, ANOMALOUS, UNJUDGED)},
                p_values=self._p_values.labels(name),
                scores=self._scores.labels(name),
            )
        return counts

    def count_shadow(
        self, champion: Resolved, shadow: Resolved, outcomes: dict[str, int], moments: dict[str, float]
    ) -> None:
        """Counts samples that a shadow scored too, or was too slow for."""
        pair = _pair(champion, shadow)
        for outcome, n in outcomes.items():
            if n:
                self._shadow_samples.labels(*pair, outcome).inc(n)
        for moment, total in moments.items():
            self._shadow_moments.labels(*pair, moment).inc(total)

    def comparison(self, champion: Resolved, shadow: Resolved) -> ShadowComparison:
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
        return ShadowComparison(samples, correlation(judged, moments))

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
        self.look()
        self._write()
        pids: dict[str, int] = {}
        for family in _of_all_workers() if self._shared else self._registry.collect():
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

    def look(self) -> None:
        """Brings up to date which versions this process has open."""
        with self._looking:
            shown: set[tuple[str, ...]] = set()
            for s in self._versions.all():
                name, version = s.resolved.name, str(s.resolved.version)
                shown.add((name, version, s.resolved.digest, s.scorer.spec.kind, s.scorer.device))
                self._bytes.labels(name, version).set(s.bytes)
            for labels in shown | self._shown:
                self._models.labels(*labels).set(labels in shown)
                if labels not in shown:
                    self._bytes.labels(*labels[:2]).set(0)
            self._shown = shown

    def _make_shadow_counters(self) -> None:
        pair = ["model", "version", "shadow"]
        self._shadow_samples = self._counter(
            "vaegis_shadow_samples",
            "Samples that a shadow scored too, by how its verdict compares with the champion's.",
            [*pair, "outcome"],
        )
        self._shadow_moments = self._counter(
            "vaegis_shadow_p_values",
            "Sums over those samples of the score's p-values by champion (p) and shadow (q), and of their products.",
            [*pair, "moment"],
        )

    def _set_constants(self, placed: DeviceInUse, release: str, worker: int) -> None:
        """What stays so as long as the process runs."""
        labels = {"version": release, "python": platform.python_version()}
        build = self._gauge("vaegis_build_info", "Always 1; the labels tell the version.", list(labels))
        build.labels(**labels).set(1)
        in_use = self._gauge("vaegis_device_in_use", "Always 1; tells where graphs run.", ["device"])
        in_use.labels(placed.device).set(1)
        fallback = self._gauge("vaegis_device_fallback", "1 where device auto runs on the CPU.", [])
        fallback.set(placed.fallback is not None)
        self._gauge(WORKER, "Process of a worker.", ["worker"]).labels(str(worker)).set(os.getpid())

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: Sequence[str] = ("model",)
    ) -> ArrayHistogram:
        return ArrayHistogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: list[str], over: Literal["livemax", "livesum"] = "livemax") -> Gauge:
        """A gauge that several workers show as one: the largest of theirs, or their sum."""
        return Gauge(name, text, labels, multiprocess_mode=over, registry=self._registry)


def _pair(champion: Resolved, shadow: Resolved) -> tuple[str, str, str]:
    return champion.name, str(champion.version), str(shadow.version)


def _of_all_workers() -> Iterable[Metric]:
    """What the workers' files hold. One that has just been made is empty for a moment: then it is read once more."""
    for _ in range(READS):
        try:
            return list(MultiProcessCollector(None).collect())  # type: ignore[no-untyped-call]
        except struct.error:
            time.sleep(READ_SECONDS)
    return list(MultiProcessCollector(None).collect())  # type: ignore[no-untyped-call]


def _processes(pids: dict[str, int]) -> Iterator[Metric]:
    """CPU, memory and files of each worker, by its number."""
    whole: dict[str, Metric] = {}
    for worker, pid in sorted(pids.items()):
        for family in ProcessCollector(namespace="vaegis", pid=partial(int, pid), registry=None).collect():
            merged = whole.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples += [Sample(s.name, {**s.labels, "worker": worker}, s.value) for s in family.samples]
    yield from whole.values()
