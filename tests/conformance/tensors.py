"""Inputs for tritonclient: of any model from its metadata, and of the models that the tests know."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from tritonclient import http
from tritonclient.utils import triton_to_np_dtype

__all__ = ["example", "infer_input", "pair", "weights"]


def infer_input(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> http.InferInput:
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def example(metadata: dict[str, Any], *, binary: bool = True, seed: int = 0) -> list[http.InferInput]:
    """Values that fit any model: small non-negative numbers; 1 where a dimension may vary."""
    rng = np.random.default_rng(seed)
    tensors = []
    for spec in metadata["inputs"]:
        shape = [1 if size == -1 else size for size in spec["shape"]]
        values = rng.integers(0, 2, shape)
        if spec["datatype"] == "BYTES":
            array = np.array([str(v) for v in values.ravel()], dtype=np.object_).reshape(shape)
        else:
            array = values.astype(triton_to_np_dtype(spec["datatype"]))
        tensors.append(infer_input(spec["name"], array, spec["datatype"], binary=binary))
    return tensors


def pair(
    rows: int = 1, seed: int = 0, *, binary: bool | tuple[bool, bool] = True, module: ModuleType = http
) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """INPUT0 and INPUT1 of add_sub, as arrays and as inputs; `binary` may differ between the two."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(-(2**20), 2**20, (2, rows, 16), dtype=np.int32)
    ways = binary if isinstance(binary, tuple) else (binary, binary)
    inputs = []
    for name, array, way in zip(("INPUT0", "INPUT1"), (first, second), ways, strict=True):
        tensor = module.InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array, binary_data=way)
        inputs.append(tensor)
    return first, second, inputs


def weights(scale: float = 1.0) -> np.ndarray:
    """W of `onnx_models.linear()`."""
    matrix = np.zeros((16, 4), np.float32)
    for i in range(16):
        matrix[i, i % 4] = scale * (i + 1) / 16
    return matrix
