"""What Prometheus reads. Every label is bounded: models that exist, routes, statuses and reasons that we name."""

from __future__ import annotations

import platform
import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from models.scorer import UNJUDGED, Verdicts
from service.live import Live, Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Clean samples fill these evenly, by the probabilities: a drifting process shows in the low ones first.
P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Scores have the model's own unit, so they are counted in clean interquartile ranges from the clean median. These can
# be negative, and a sum that can fall is no counter: the client library leaves it out.
SPREADS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)


class Metrics:
    """The metrics of one service; each app has its own registry."""

    def __init__(self, live: Live, version: str) -> None:
        self._registry = r = CollectorRegistry()
        self.samples = Counter(
            "vaegis_samples_scored",
            "Samples judged, by verdict; unjudged ones could not be read or had no finite score.",
            ["model", "version", "status"],
            registry=r,
        )
        self.requests = Histogram(
            "vaegis_request_seconds",
            "Time from a request's first byte to its answer.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=r,
        )
        self.inference = Histogram(
            "vaegis_inference_seconds",
            "Time to score one request's samples, decoding left out.",
            ["model"],
            buckets=SECONDS,
            registry=r,
        )
        self.decoding = Histogram(
            "vaegis_decoding_seconds",
            "Time to turn one request's body into samples.",
            ["model"],
            buckets=SECONDS,
            registry=r,
        )
        self.rejected = Counter(
            "vaegis_requests_rejected", "Requests answered with an error, by reason.", ["reason"], registry=r
        )
        self.p_values = BatchHistogram(
            "vaegis_p_value", "Conformal p-values of judged samples, by the deciding term.", P_VALUES
        )
        self.scores = BatchHistogram(
            "vaegis_score_spread",
            "Scores of judged samples, in clean interquartile ranges from the clean median.",
            SPREADS,
        )
        for collector in (self.p_values, self.scores, _State(live, version)):
            r.register(collector)
        ProcessCollector(namespace="vaegis", registry=r)

    def count(self, served: Served, verdicts: Verdicts) -> None:
        """Counts every sample of an answer."""
        name, version = served.resolved.name, str(served.resolved.version)
        for status, n in Tally(verdicts.status).items():
            self.samples.labels(name, version, status).inc(n)
        judged = np.array([s != UNJUDGED for s in verdicts.status])
        if judged.any():
            self.p_values.add(name, verdicts.p_values[verdicts.decision.decide_by][judged])
            self.scores.add(name, (verdicts.evidence["score"][judged] - served.median) / served.spread)

    def page(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)


class BatchHistogram(Collector):
    """A histogram by model that takes whole arrays: the client library's takes one number at a time."""

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._help, self._bounds = name, help_text, np.array(bounds)
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, model: str, values: NDArray[np.float64]) -> None:
        """Counts finite values."""
        size = len(self._bounds) + 1
        found = np.bincount(np.searchsorted(self._bounds, values, side="left"), minlength=size)
        with self._lock:
            self._counts[model] = self._counts.get(model, np.zeros(size, np.int64)) + found
            self._sums[model] = self._sums.get(model, 0.0) + float(values.sum())

    def collect(self) -> Iterable[Metric]:
        """As the client library asks."""
        family = HistogramMetricFamily(self._name, self._help, labels=["model"])
        with self._lock:
            held = [(m, np.cumsum(c).tolist(), self._sums[m]) for m, c in self._counts.items()]
        bounds = [*(str(float(b)) for b in self._bounds), "+Inf"]
        for model, counts, total in held:
            family.add_metric([model], list(zip(bounds, counts, strict=True)), total)
        yield family


class _State(Collector):
    """What is so at the moment of asking: models in service, device, version."""

    def __init__(self, live: Live, version: str) -> None:
        self._live, self._version = live, version

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "vaegis_build_info",
            "Always 1; the labels tell the version.",
            [{"version": self._version, "python": platform.python_version()}],
        )
        yield _gauge("vaegis_device_in_use", "Always 1; tells where graphs run.", [{"device": self._live.device}])
        yield _gauge(
            "vaegis_model_info",
            "1 for each model and version in service.",
            [
                {
                    "model": s.resolved.name,
                    "version": str(s.resolved.version),
                    "digest": s.resolved.digest,
                    "kind": s.scorer.spec.kind,
                    "device": s.scorer.device,
                }
                for s in self._live.served()
            ],
            ["model", "version", "digest", "kind", "device"],
        )


def _gauge(name: str, text: str, rows: list[dict[str, str]], labels: list[str] | None = None) -> Any:
    names = labels or list(rows[0])
    family = GaugeMetricFamily(name, text, labels=names)
    for row in rows:
        family.add_metric([row[k] for k in names], 1.0)
    return family
