"""The model as every peer's handler runs it: OpenVINO in FP32, one stream, as many threads as it is given.

Copied beside handlers that run in environments of their own: it imports nothing of this project.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov

__all__ = ["Engine"]


class Engine:
    """One request, whose tensors are shared and not copied."""

    def __init__(self, path: Path | str, threads: int) -> None:
        config = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._request = ov.Core().compile_model(str(path), "CPU", config).create_infer_request()

    def run(self, rows: np.ndarray) -> np.ndarray:
        """float32 [rows, ...] -> float32 [rows, classes], valid until the next run."""
        return self._request.infer({0: rows}, share_inputs=True, share_outputs=True)[0]
