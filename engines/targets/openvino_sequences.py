"""Keep OpenVINO 2026.4 from exporting a recurrent layer that answers wrongly after its import.

Between Transpose {1, 0, 2} and Transpose {2, 1, 0, 3} the CPU plugin runs a sequence in the order of time, takes both
transpositions away, and notes that in a mark which `export_model` does not write. Imported, the layer reads time as
batch. Any other operator between a sequence and its transposition leaves things in the order that is exported.
"""

from __future__ import annotations

import openvino as ov
from openvino import opset13 as ops

from engines.targets.openvino_bodies import nodes_of, replace

__all__ = ["keep_batch_order"]

_SEQUENCES = frozenset({"GRUSequence", "LSTMSequence", "RNNSequence"})
_TIME_FIRST = [2, 1, 0, 3]


def keep_batch_order(graph: ov.Model) -> None:
    """Write [N, 1, T, H] -> [T, 1, N, H] as Squeeze, Transpose, Unsqueeze behind every sequence of one direction.

    Bodies of If and of loops are followed.
    """
    for node in nodes_of(graph):
        if node.get_type_name() not in _SEQUENCES:
            continue
        states = node.output(0)
        for reader in (target.get_node() for target in states.get_target_inputs()):
            if states.get_partial_shape()[1] == 1 and _order(reader) == _TIME_FIRST:
                replace(reader.output(0), _time_first(states))


def _order(node: ov.Node) -> list[int]:
    """Of a Transpose whose order is stored; else nothing."""
    if node.get_type_name() != "Transpose":
        return []
    order = node.input_value(1).get_node()
    return order.get_data().tolist() if order.get_type_name() == "Constant" else []


def _time_first(states: ov.Output) -> ov.Output:
    one = ops.constant([1])
    return ops.unsqueeze(ops.transpose(ops.squeeze(states, one), ops.constant([1, 0, 2])), one).output(0)
