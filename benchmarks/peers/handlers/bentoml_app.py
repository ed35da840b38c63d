"""BentoML's service: {"x"} is answered with the rows themselves. Model, threads and rows are in the environment."""

from __future__ import annotations

import os

import bentoml
import numpy as np
from engine import Engine


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Rows:
    def __init__(self) -> None:
        self._engine = Engine(os.environ["ROWS_MODEL"], int(os.environ["ROWS_THREADS"]))

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["ROWS_MOST"]), max_latency_ms=60000)
    def rows(self, x: np.ndarray) -> np.ndarray:
        return self._engine.run(x.astype(np.float32, copy=False)).copy()
