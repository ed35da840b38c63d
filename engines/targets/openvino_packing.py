"""Let a binary layer pack what it reads, where nobody else reads its bits: one call of OpenVINO instead of two.

Each call has a cost of its own, most of all where the number of rows is not known before: its shapes are inferred, and
its tensors made, in every run.
"""

from __future__ import annotations

import openvino as ov

from engines.targets.openvino_bodies import replace
from engines.targets.openvino_fused import BINARY_LAYERS, PACKING, fused, kind_of

__all__ = ["pack_in_layers"]


def pack_in_layers(graph: ov.Model) -> int:
    """Of every BinaryPack that one layer alone reads; returns how many there are. The layer keeps its name."""
    found = [node for node in graph.get_ordered_ops() if _reads_own_bits(node)]
    for layer in found:
        pack, others = layer.input_value(0).get_node(), layer.input_values()[1:]
        packing = fused(PACKING, layer, [*pack.input_values(), *others], pack.get_attributes())
        replace(layer.output(0), packing.output(0))
    return len(found)


def _reads_own_bits(node: ov.Node) -> bool:
    """An output of the graph reads bits, too."""
    if kind_of(node) not in BINARY_LAYERS:
        return False
    bits = node.input_value(0)
    return bits.get_node().get_type_name() == "BinaryPack" and len(bits.get_target_inputs()) == 1
