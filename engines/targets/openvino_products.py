"""Make OpenVINO 2026.4 look at the inner dimension of a product, where it is known on one side only before a run.

Its CPU plugin does not: a row of 15 numbers times stored weights of 16 rows reads one number of foreign memory, and a
picture larger than what a layer was trained for reads gigabytes of it. Before each such product the data is reshaped
to the shape that it must have. That costs nothing where it fits (no element moves), and the engine raises where not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from engines.targets.openvino_bodies import nodes_of

__all__ = ["hold_inner_sizes"]

_ELLIPSIS, _AS_IT_IS = "...", 0


def hold_inner_sizes(graph: ov.Model) -> None:
    """Before every MatMul and Einsum, bodies included."""
    for node in nodes_of(graph):
        if node.get_type_name() == "MatMul":
            _hold_matmul(node)
        elif node.get_type_name() == "Einsum":
            _hold_einsum(node)


def _hold_matmul(node: ov.Node) -> None:
    given = node.get_attributes()
    inner = [_inner_axis(node.input_value(i), i == 1, given[f"transpose_{'ab'[i]}"]) for i in range(2)]
    sizes = [_size(node.input_value(i), inner[i]) for i in range(2)]
    for i, other in ((0, sizes[1]), (1, sizes[0])):
        if sizes[i] is None and other is not None:
            _hold(node, i, {inner[i]: other})


def _inner_axis(value: ov.Output, is_second: bool, transposed: bool) -> int:
    """Counted from the end. A vector has one axis, whatever is to be transposed."""
    rank = value.get_partial_shape().rank
    is_vector = rank.is_static and rank.get_length() == 1
    return -1 if is_vector or is_second == transposed else -2


def _hold_einsum(node: ov.Node) -> None:
    terms = node.get_attributes()["equation"].replace(" ", "").partition("->")[0].split(",")
    axes = [_labelled(term, node.input_value(i)) for i, term in enumerate(terms)]
    known: dict[str, int] = {}
    for i, labels in enumerate(axes):
        for axis, label in labels.items():
            size = _size(node.input_value(i), axis)
            if size is not None:
                known[label] = max(size, known.get(label, 1))
    for i, labels in enumerate(axes):
        loose = {a: known[at] for a, at in labels.items() if at in known and _size(node.input_value(i), a) is None}
        if loose:
            _hold(node, i, loose)


def _labelled(term: str, value: ov.Output) -> dict[int, str]:
    """Label by axis, those behind an ellipsis counted from the end."""
    front, _, back = term.partition(_ELLIPSIS)
    return {**dict(enumerate(front)), **{i - len(back): label for i, label in enumerate(back)}}


def _size(value: ov.Output, axis: int) -> int | None:
    shape = value.get_partial_shape()
    if shape.rank.is_dynamic or shape[axis].is_dynamic:
        return None
    return int(shape[axis].get_length())


def _hold(node: ov.Node, position: int, sizes: Mapping[int, int]) -> None:
    value = node.input_value(position)
    rank = value.get_partial_shape().rank
    if rank.is_static:
        wanted = [_AS_IT_IS] * rank.get_length()
        for axis, size in sizes.items():
            wanted[axis] = size
        pattern = ops.constant(wanted, np.int64)
    else:
        pattern = ops.shape_of(value)
        for axis, size in sizes.items():
            place = ops.add(ops.shape_of(ops.shape_of(value)), ops.constant([axis]))
            pattern = ops.scatter_update(pattern, place, ops.constant([size]), ops.constant(0))
    held = ops.reshape(value, pattern, special_zero=rank.is_static)
    held.set_friendly_name(f"{node.get_friendly_name()}/inner{position}")
    node.input(position).replace_source_output(held.output(0))
