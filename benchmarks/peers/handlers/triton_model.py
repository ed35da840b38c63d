"""Triton's Python backend: all requests of a call become one run, and its rows go back to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from .engine import Engine


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        threads = int(config["parameters"]["threads"]["string_value"])
        self._engine = Engine(Path(__file__).parent / "model.onnx", threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        parts = [triton.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        answer = self._engine.run(rows)
        responses, at = [], 0
        for part in parts:
            tensor = triton.Tensor(self._output, answer[at : at + len(part)])
            responses.append(triton.InferenceResponse([tensor]))
            at += len(part)
        return responses
