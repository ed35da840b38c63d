"""The oracle: ONNX Runtime with graph optimizations off. Slow, and every engine is checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from engines.errors import ModelRefused
from engines.hardware import usable_threads

__all__ = ["Arrays", "Reference"]

Arrays = dict[str, np.ndarray]

_KEPT_BYTES = 2**26


class Reference:
    """Runs the model as its file says. Raises ModelRefused where ONNX Runtime cannot read it.

    The search for samples, the agreement and the meaning of rows ask about the same inputs, so answers are kept and
    given again (read-only, 64 MiB of them at most; refusals are not kept).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = usable_threads(), 1
        # its threads would go on spinning for a while, on the cores of the engine that runs next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelRefused(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._kept: dict[bytes, Arrays] = {}
        self._room = _KEPT_BYTES

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run one batch; any exception of ONNX Runtime passes through."""
        key = _digest(inputs)
        if key not in self._kept:
            answer = self._run(inputs)
            size = sum(array.nbytes for array in answer.values())
            if size > self._room:
                return answer
            self._room -= size
            self._kept[key] = answer
        return dict(self._kept[key])

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        found = self._session.run(self._outputs, dict(inputs))
        answer = {name: np.array(value) for name, value in zip(self._outputs, found, strict=True)}
        for array in answer.values():
            array.flags.writeable = False
        return answer


def _digest(inputs: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.blake2b()
    for name, array in sorted(inputs.items()):
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.digest()
