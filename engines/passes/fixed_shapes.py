"""Give variable dimensions of inputs the sizes that they will have: an engine of known shapes is smaller and faster.

Pattern   inputs that are asked for, by name
Check     the name and the number of dimensions fit; a dimension that is fixed has the size that is asked; the graph can
          take the sizes, as far as shape inference can tell
Rewrite   the dimension's number in the input's type; shapes declared behind the inputs are dropped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx.shape_inference
from onnx import ModelProto, ValueInfoProto

from engines.errors import ModelRefused
from engines.graphs import copy_of, drop_stored_inputs, without_weights

__all__ = ["with_shapes", "with_sizes"]

_ANY = -1


def with_shapes(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """A copy in which the named inputs have these sizes in all dimensions but the first, which carries the rows.

    -1 leaves a dimension as it is. Raises ModelRefused, naming the input, where a shape does not fit.
    """
    copy = copy_of(model)
    drop_stored_inputs(copy.graph)
    inputs = {value.name: value for value in copy.graph.input}
    for name, sizes in shapes.items():
        if name not in inputs:
            names = ", ".join(repr(known) for known in inputs)
            raise ModelRefused(f"a shape is given for {name!r}, which is no input; inputs are {names}")
        _fix(inputs[name], sizes)
    del copy.graph.value_info[:]
    _require_inferable(model, copy, shapes)
    return copy


def with_sizes(model: ModelProto, sizes: Mapping[tuple[str, int], int]) -> ModelProto:
    """A copy in which these dimensions, given by the input's name and the axis, have these sizes."""
    copy = copy_of(model)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (value.name, axis) in sizes:
                dim.Clear()
                dim.dim_value = sizes[value.name, axis]
    return copy


def _fix(value: ValueInfoProto, sizes: Sequence[int]) -> None:
    dims = value.type.tensor_type.shape.dim
    declared = [dim.dim_value if dim.dim_value > 0 else _ANY for dim in dims]
    asked = list(sizes)
    if len(asked) != len(dims) - 1:
        raise ModelRefused(
            f"the shape of input {value.name!r} is {declared}, and {asked} has {len(asked)} sizes; expected "
            f"{max(0, len(dims) - 1)}: the first dimension carries the rows and is left out"
        )
    for dim, was, size in zip(dims[1:], declared[1:], asked, strict=True):
        if size != _ANY and size < 1:
            raise ModelRefused(f"the shape {asked} of input {value.name!r} has {size} in it; expected 1 or more, or -1")
        if was != _ANY and size not in (_ANY, was):
            raise ModelRefused(f"input {value.name!r} has shape {declared}; it cannot become {asked}: {was} is fixed")
        if size != _ANY:
            dim.Clear()
            dim.dim_value = size


def _require_inferable(model: ModelProto, fixed: ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """What the sizes break, where nothing was broken before."""
    reason = _broken(fixed)
    if reason and not _broken(model):
        asked = ", ".join(f"{name!r} {list(sizes)}" for name, sizes in shapes.items())
        raise ModelRefused(f"the model cannot take inputs of shape {asked}: {reason}")


def _broken(model: ModelProto) -> str:
    try:
        onnx.shape_inference.infer_shapes(without_weights(model)[0], check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return str(error).splitlines()[0]
    return ""
