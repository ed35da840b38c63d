"""Let an input take pixels as cameras and decoders give them: UINT8, a quarter of the bytes of floats.

Algebra   x = (pixel - mean) / scale, with one number for all channels or one for each; channels moved to the front
Pattern   an input of the graph, float, [N, C, H, W]
Check     it has four dimensions and is no output itself; as many means and scales as channels, where these are known
Rewrite   input [N, H, W, C] UINT8 of the same name -> Cast -> Transpose -> Sub -> Div -> what the graph read before;
          in float32, whatever the graph computes in: half precision would round the pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.graphs import all_graphs, all_nodes, copy_of, drop_stored_inputs

__all__ = ["with_image_input"]

_RANK = 4
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_TO_FRONT = [0, 3, 1, 2]


def with_image_input(
    model: ModelProto, name: str, layout: str = "NHWC", mean: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)
) -> ModelProto:
    """A copy whose input `name` takes UINT8 [N, H, W, C], or [N, C, H, W] where `layout` is NCHW.

    Raises ModelRefused where the input is no image, or the numbers of means or scales do not fit its channels.
    """
    copy = copy_of(model)
    drop_stored_inputs(copy.graph)
    value = _image(copy, name)
    if layout not in ("NHWC", "NCHW"):
        raise ModelRefused(f"layout {layout!r} of input {name!r} is unknown; expected NHWC or NCHW")
    kind, dims = value.type.tensor_type.elem_type, list(value.type.tensor_type.shape.dim)
    channels = dims[1].dim_value
    for what, numbers in (("mean", mean), ("scale", scale)):
        if len(numbers) != 1 and channels and len(numbers) != channels:
            raise ModelRefused(f"input {name!r} has {channels} channels; expected 1 or {channels} numbers of {what}")
        if not np.all(np.isfinite(numbers)) or (what == "scale" and 0 in numbers):
            raise ModelRefused(f"the {what} of input {name!r} is {list(numbers)}; expected finite numbers, none 0")
    new = f"{name}_normalized"
    taken = {n for node in all_nodes(copy.graph) for n in (*node.input, *node.output)}
    while any(known.startswith(new) for known in taken):
        new += "_"
    _rename_reads(copy, name, new)
    nodes = _normalize(copy, name, new, layout, kind, mean, scale)
    rest = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes, *rest])
    value.type.tensor_type.elem_type = TensorProto.UINT8
    if layout == "NHWC":
        order = [dims[0], dims[2], dims[3], dims[1]]
        moved = [type(dim).FromString(dim.SerializeToString()) for dim in order]
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend(moved)
    return copy


def _image(model: ModelProto, name: str) -> ValueInfoProto:
    value: ValueInfoProto | None = next((value for value in model.graph.input if value.name == name), None)
    if value is None:
        names = ", ".join(repr(value.name) for value in model.graph.input)
        raise ModelRefused(f"the model has no input {name!r} to take images; its inputs are {names}")
    tensor = value.type.tensor_type
    if tensor.elem_type not in _FLOATS or len(tensor.shape.dim) != _RANK:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ModelRefused(
            f"input {name!r} is {kind} of {len(tensor.shape.dim)} dimensions; an image input is float [N, C, H, W]"
        )
    if any(output.name == name for output in model.graph.output):
        raise ModelRefused(f"input {name!r} is an output too, so it cannot take images")
    return value


def _rename_reads(model: ModelProto, old: str, new: str) -> None:
    for graph in all_graphs(model.graph):
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new
        for output in graph.output:
            if output.name == old:
                output.name = new


def _normalize(
    model: ModelProto, name: str, new: str, layout: str, kind: int, mean: Sequence[float], scale: Sequence[float]
) -> list[NodeProto]:
    """Nodes from `name` to `new`; those that would change nothing are left out."""
    steps: list[tuple[str, np.ndarray | None, dict[str, Any]]] = [("Cast", None, {"to": TensorProto.FLOAT})]
    if layout == "NHWC":
        steps.append(("Transpose", None, {"perm": _TO_FRONT}))
    if any(mean):
        steps.append(("Sub", np.asarray(mean, np.float32), {}))
    if any(number != 1 for number in scale):
        steps.append(("Div", np.asarray(scale, np.float32), {}))
    if kind != TensorProto.FLOAT:
        steps.append(("Cast", None, {"to": kind}))
    nodes: list[NodeProto] = []
    last = name
    for position, (op_type, numbers, attributes) in enumerate(steps):
        output = new if position == len(steps) - 1 else f"{new}_{position}"
        inputs = [last]
        if numbers is not None:
            inputs.append(f"{new}_{op_type}")
            model.graph.initializer.append(numpy_helper.from_array(numbers.reshape(1, -1, 1, 1), inputs[1]))
        nodes.append(helper.make_node(op_type, inputs, [output], f"{new}_{op_type}_{position}", **attributes))
        last = output
    return nodes
