"""The graph as every peer runs it: one thread a call, none that spins, all evidence and no map."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort


class Graph:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])
        self.names = [o.name for o in self._session.get_outputs() if o.name != "map"]

    def run(self, images: list | np.ndarray) -> dict[str, np.ndarray]:
        pixels = np.asarray(images, np.uint8)
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        return dict(zip(self.names, self._session.run(self.names, {"input": pixels}), strict=True))
