"""LitServe with its dynamic batching."""

from __future__ import annotations

import os

import litserve as ls
import numpy as np
from graph import Graph


class Score(ls.LitAPI):
    def setup(self, device):
        self.graph = Graph()

    def decode_request(self, request):
        return np.array(request["data"], np.uint8)

    def batch(self, inputs):
        self.sizes = [len(x) for x in inputs]
        return np.concatenate(inputs)

    def predict(self, x):
        return self.graph.run(x)

    def unbatch(self, output):
        ends = np.cumsum(self.sizes)
        return [
            {name: v[end - size : end] for name, v in output.items()}
            for size, end in zip(self.sizes, ends, strict=True)
        ]

    def encode_response(self, output):
        return {name: values.tolist() for name, values in output.items()}


if __name__ == "__main__":
    api = Score(max_batch_size=32, batch_timeout=0.001, api_path="/score")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
