"""The oracle: ONNX Runtime with graph optimizations off, one thread. Slow, and every engine is checked against it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from engines.errors import ModelRefused

__all__ = ["Arrays", "Reference"]

Arrays = dict[str, np.ndarray]


class Reference:
    """Runs the model as its file says. Raises ModelRefused where ONNX Runtime cannot read it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelRefused(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run one batch; any exception of ONNX Runtime passes through."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
