"""Give OpenVINO's graph every input of the model, under its own name.

The front end of 2026.4 leaves out an input that no output depends on (exports declare a `token_type_ids` that their
model drops), and gives an input the name of what an operator that does nothing (a Dropout, a sum of one) makes of it.
Clients send the inputs that the file declares, so the engine has to take them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import openvino as ov
from onnx import ModelProto, ValueInfoProto, helper
from openvino import opset15

from engines.graphs import all_nodes, copy_of
from engines.tensor import DYNAMIC

__all__ = ["with_all_inputs"]

_PREFIX = "bitserve.input"


def with_all_inputs(model: ModelProto, read: Callable[[ModelProto], ov.Model]) -> ov.Model:
    """What `read` makes of the model, with a parameter for each of its inputs."""
    graph = read(model)
    if _missing(model, graph):
        graph = read(_apart(model, {value.name for value in _missing(model, graph)}))
        graph.add_parameters([_unread(value) for value in _missing(model, graph)])
    return graph


def _missing(model: ModelProto, graph: ov.Model) -> list[ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    there = {name for port in graph.inputs for name in port.names}
    return [value for value in model.graph.input if value.name not in there | stored]


def _apart(model: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy whose nodes read these inputs through an Identity each, which takes the new name instead of the input."""
    copy = copy_of(model)
    for node in all_nodes(copy.graph):
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = f"{_PREFIX}.{name}"
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend(helper.make_node("Identity", [name], [f"{_PREFIX}.{name}"]) for name in sorted(names))
    copy.graph.node.extend(nodes)
    return copy


def _unread(value: ValueInfoProto) -> ov.op.Parameter:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.dim_value > 0 else DYNAMIC for d in tensor.shape.dim]
    parameter = opset15.parameter(dims, helper.tensor_dtype_to_np_dtype(tensor.elem_type), name=value.name)
    parameter.output(0).set_names({value.name})
    return parameter
