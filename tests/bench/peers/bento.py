"""BentoML with its adaptive batching."""

from __future__ import annotations

import bentoml
import numpy as np
from graph import Graph


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Score:
    def __init__(self) -> None:
        self.graph = Graph()

    @bentoml.api(route="/score", batchable=True, max_batch_size=256, max_latency_ms=1000)
    def score(self, data: np.ndarray) -> np.ndarray:
        return np.stack(list(self.graph.run(data).values()), axis=1)
