"""What a graph demands of its inputs' values: indices within their tables, sizes that fit.

An index outside its table is an error in ONNX, but an engine may answer zeros instead (OpenVINO 2026.4 does). So the
range is read off the graph once, and requests are checked against it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

__all__ = [
    "INDEX_INPUTS", "checked_lookups", "fails_on_values", "from_shapes", "index_ranges", "never_empty",
    "takes_sizes_from_values",
]  # fmt: skip

_SAME_VALUES = frozenset(
    {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose first output holds nothing but values of their first input."""
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_SIZE_INPUTS: dict[str, tuple[int, ...]] = {
    "CenterCropPad": (1,), "ConstantOfShape": (0,), "CumSum": (1,), "Expand": (1,), "GRU": (4,), "If": (0,),
    "LSTM": (4,), "Loop": (0, 1), "NonMaxSuppression": (2,), "OneHot": (1,), "Pad": (1, 3), "RNN": (4,),
    "Range": (0, 1, 2), "Reshape": (1,), "Resize": (2, 3), "ReverseSequence": (1,), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    **dict.fromkeys(_REDUCTIONS, (1,)),
}  # fmt: skip
"""Positions of the inputs that say how large something is, or along which axis, by operator."""
_CONTROLS: dict[str, tuple[int, ...]] = {
    **_SIZE_INPUTS, "AffineGrid": (1,), "BlackmanWindow": (0,), "Col2Im": (1, 2), "Compress": (1,), "DFT": (1, 2),
    "Gather": (1,), "GatherElements": (1,), "GatherND": (1,), "HammingWindow": (0,), "HannWindow": (0,),
    "MaxRoiPool": (1,), "MaxUnpool": (1, 2), "MelWeightMatrix": (0, 1, 2, 3, 4), "NegativeLogLikelihoodLoss": (1,),
    "NonMaxSuppression": (0, 1, 2, 3, 4), "NonZero": (0,), "RoiAlign": (2,), "STFT": (1, 3), "Scatter": (1,),
    "ScatterElements": (1,), "ScatterND": (1,), "SequenceAt": (1,), "SequenceErase": (1,), "SequenceInsert": (2,),
    "SoftmaxCrossEntropyLoss": (1,), "SplitToSequence": (1,), "StringSplit": (0, 1), "Unique": (0,),
}  # fmt: skip
"""The same, and all others whose values decide whether a node can run, or the shape of what it gives."""
INDEX_INPUTS = {
    "Gather": 1, "GatherElements": 1, "GatherND": 1, "Scatter": 1, "ScatterElements": 1, "ScatterND": 1,
}  # fmt: skip
"""Position of the indices, by operator."""
_MAY_EMPTY = frozenset({
    "Compress", "ConstantOfShape", "Expand", "GatherND", "If", "Loop", "NonMaxSuppression", "NonZero", "Pad", "Range",
    "Resize", "Scan", "SequenceAt", "Slice", "Split", "SplitToSequence", "StringSplit", "Tile", "TopK",
    "Unique", "Upsample",
})  # fmt: skip
"""Operators that may give nothing where they are given something."""
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})


def index_ranges(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Smallest and largest value allowed, by input name; inputs that index no stored table are left out.

    A table of n rows takes -n to n - 1 (ONNX Gather: negative indices count from the end). Where several tables are
    indexed by the same input, the narrowest range holds.
    """
    ranges: dict[str, tuple[int, int]] = {}
    for _, name, rows in _direct_lookups(model):
        low, high = ranges.get(name, (-rows, rows - 1))
        ranges[name] = (max(low, -rows), min(high, rows - 1))
    return ranges


def checked_lookups(model: onnx.ModelProto) -> set[str]:
    """First outputs of the Gather nodes that `index_ranges` covers."""
    return {node.output[0] for node, _, _ in _direct_lookups(model)}


def _direct_lookups(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str, int]]:
    """Each Gather of a stored table by values of an input: the node, the input's name, the table's rows."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tables[node.output[0]] = tuple(node.attribute[0].t.dims)
    origin = {
        value.name: value.name
        for value in model.graph.input
        if value.name not in tables and value.type.tensor_type.elem_type in _INTEGERS
    }
    for node in model.graph.node:  # ONNX graphs are in topological order
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] in origin:
            yield node, origin[node.input[1]], tables[node.input[0]][_axis(node)]
        elif _keeps_values(node) and node.input[0] in origin:
            for output in node.output:
                origin[output] = origin[node.input[0]]


def _keeps_values(node: onnx.NodeProto) -> bool:
    """Whether the outputs hold nothing but values of the first input; a cast to a narrower type may change them."""
    if node.op_type == "Cast":
        return any(attribute.name == "to" and attribute.i in _INTEGERS for attribute in node.attribute)
    return node.op_type in _SAME_VALUES and bool(node.input)


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def takes_sizes_from_values(model: onnx.ModelProto) -> bool:
    """Whether some size is computed from the inputs' values, so that a value can make a run fail.

    Constants and what is computed from shapes alone do not count.
    """
    fixed = from_shapes(model)
    return any(
        position < len(node.input) and node.input[position] not in fixed
        for node in model.graph.node
        for position in _SIZE_INPUTS.get(node.op_type, ())
    )


def fails_on_values(model: onnx.ModelProto) -> bool:
    """Whether values of the inputs, and not their shapes alone, may make a run fail. Bodies are followed."""
    return _fails_on_values(model.graph, {""}, checked_lookups(model))


def _fails_on_values(graph: onnx.GraphProto, outer: set[str], checked: set[str]) -> bool:
    fixed = _from_shapes(graph, outer)
    for node in graph.node:
        controls = [node.input[p] for p in _CONTROLS.get(node.op_type, ()) if p < len(node.input)]
        if any(name not in fixed for name in controls) and node.output[0] not in checked:
            return True
        if any(
            _fails_on_values(attribute.g, fixed, checked) for attribute in node.attribute if attribute.HasField("g")
        ):
            return True
    return False


def from_shapes(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that are constant or computed from constants and shapes alone."""
    return _from_shapes(model.graph, {""})


def _from_shapes(graph: onnx.GraphProto, outer: set[str]) -> set[str]:
    fixed = {tensor.name for tensor in graph.initializer} | outer
    for node in graph.node:
        reads_all = all(name in fixed for name in node.input)
        bodies = any(attribute.HasField("g") for attribute in node.attribute)  # these read more than their inputs
        if node.op_type in ("Shape", "Size") or (reads_all and not bodies):
            fixed.update(node.output)
    return fixed


def never_empty(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that have elements whatever is asked: inputs have at least one in every dimension."""
    full = {value.name for value in model.graph.input} | {""}
    full |= {tensor.name for tensor in model.graph.initializer if all(tensor.dims)}
    for info in [*model.graph.value_info, *model.graph.output]:
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(d.dim_value > 0 for d in kind.shape.dim):
            full.add(info.name)
    for node in model.graph.node:
        if _keeps_elements(node) and all(name in full for name in node.input):
            full.update(node.output)
    return full


def _keeps_elements(node: onnx.NodeProto) -> bool:
    if node.op_type == "Constant":
        return all(all(attribute.t.dims) for attribute in node.attribute if attribute.name == "value")
    return node.op_type not in _MAY_EMPTY
