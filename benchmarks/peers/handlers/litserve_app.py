"""LitServe: `python litserve_app.py PORT MODEL THREADS ROWS`; {"id", "x"} is answered {"id", "y"}."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
from engine import Engine

BATCH_TIMEOUT_S = 0.001
Call = tuple[str, np.ndarray]


class Rows(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._engine = Engine(sys.argv[2], int(sys.argv[3]))

    def decode_request(self, request) -> Call:  # LitServe would read an annotation as the query's
        return request["id"], np.array(request["x"], np.float32)

    def batch(self, inputs: list[Call]) -> tuple[list[Call], np.ndarray]:
        return inputs, np.concatenate([rows for _, rows in inputs])

    def predict(self, batch: tuple[list[Call], np.ndarray]) -> tuple[list[Call], np.ndarray]:
        calls, rows = batch
        return calls, self._engine.run(rows)

    def unbatch(self, output: tuple[list[Call], np.ndarray]) -> list[Call]:
        calls, answer = output
        ends = np.cumsum([len(rows) for _, rows in calls])[:-1]
        return [(name, part) for (name, _), part in zip(calls, np.split(answer, ends), strict=True)]

    def encode_response(self, output: Call) -> dict[str, Any]:
        return {"id": output[0], "y": output[1].tolist()}


if __name__ == "__main__":
    api = Rows(max_batch_size=int(sys.argv[4]), batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="error"
    )
