"""Read an ONNX file: bounds and refusals first, then the tensors it takes and gives. Writes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx.inliner
from onnx import TensorProto

from engines.errors import ModelRefused
from engines.frontend import guard
from engines.frontend.qonnx import with_bipolar
from engines.graphs import opset_of
from engines.operators import listed
from engines.plugins.bodies import define
from engines.reference import unknown_operators
from engines.spec import USUAL_BATCH, Spec
from engines.tensor import DYNAMIC, TensorSpec

__all__ = ["NEWEST_OPSET", "read", "tensor_specs"]

NEWEST_OPSET = 25
"""Of the standard operators; what later ones changed is not known here."""

_NOTHING_ASKED = Spec()
_NO_OPERATOR = "No Op registered for"
_DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
}


def read(path: Path, spec: Spec = _NOTHING_ASKED) -> tuple[onnx.ModelProto, str, int]:
    """Parse a single-file ONNX model: the model, and SHA-256 and size of exactly the bytes it was parsed from.

    `spec` says with how many rows, and how large, it will be run. ModelRefused says what was wrong with it.
    """
    data = guard.check_file(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise ModelRefused(f"{path.name} is not an ONNX model: {str(error).splitlines()[0][:200]}") from error
    if not model.graph.node:
        raise ModelRefused(f"{path.name} is not an ONNX model with a graph: it has no nodes")
    _check(define(with_bipolar(model)), path.name)
    # what is in a function counts as often as it is called
    guard.check_tensors(_inlined(model), rows=spec.max_batch or USUAL_BATCH, shapes=spec.shapes)
    return model, hashlib.sha256(data).hexdigest(), len(data)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _check(model: onnx.ModelProto, name: str) -> None:
    guard.check_model(model)
    opset = opset_of(model) or 0
    if opset > NEWEST_OPSET:
        raise ModelRefused(f"opset {opset} is newer than {NEWEST_OPSET}, the newest that is read here")
    tensor_specs(model)  # says it better than the checker
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # a ValidationError, or protobuf's own where a field cannot be written again
        unknown = unknown_operators(_inlined(model)) if _NO_OPERATOR in str(error) else []
        if unknown:  # the checker names the first, and not its node
            raise ModelRefused(f"ONNX Runtime does not know these operators: {listed(unknown)}") from error
        raise ModelRefused(f"{name} breaks the ONNX rules: {str(error).splitlines()[0]}") from error


def tensor_specs(model: onnx.ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs (initializers excluded) and outputs as the file declares them; unknown ranks and types are refused."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [_spec(value, "input") for value in model.graph.input if value.name not in stored]
    outputs = [_spec(value, "output") for value in model.graph.output]
    if not inputs:
        raise ModelRefused("the graph has no inputs; expected at least one")
    return inputs, outputs


def _spec(value: onnx.ValueInfoProto, kind: str) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise ModelRefused(f"{kind} {value.name!r} is not a tensor (a sequence, map or optional cannot be served)")
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DATATYPES:
        known = tensor.elem_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(tensor.elem_type) if known else tensor.elem_type
        raise ModelRefused(f"{kind} {value.name!r} has element type {name}; expected one of {_names()}")
    if kind == "input" and not tensor.HasField("shape"):
        raise ModelRefused(f"input {value.name!r} has no declared rank; export the model with input shapes")
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else DYNAMIC for d in tensor.shape.dim)
    return TensorSpec(value.name, _DATATYPES[tensor.elem_type], dims)


def _names() -> str:
    return ", ".join(sorted(_DATATYPES.values()))
