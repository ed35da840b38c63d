"""Let a binary layer pack what it reads, where nobody else reads its bits: one call of OpenVINO instead of two.

Each call has a cost of its own, most of all where the number of rows is not known before: its shapes are inferred, and
its tensors made, in every run. The operators `Packing...` are in OpenVINO's graph alone: no front end reads them.
"""

from __future__ import annotations

import functools

import openvino as ov
from openvino.utils.node_factory import NodeFactory

from engines.plugins.extension import extension_path
from engines.targets.openvino_bodies import replace

__all__ = ["BINARY_LAYERS", "PACKING", "pack_in_layers"]

BINARY_LAYERS = frozenset({"BinaryConv2d", "BinaryThreshold2d", "BinaryGemm", "BinaryThreshold"})
PACKING = "Packing"
"""The type of one that packs begins with it."""


def pack_in_layers(graph: ov.Model) -> int:
    """Of every BinaryPack that one layer alone reads; returns how many there are. The layer keeps its name."""
    found = [node for node in graph.get_ordered_ops() if _reads_own_bits(node)]
    for layer in found:
        _fuse(layer.input_value(0).get_node(), layer)
    return len(found)


def _reads_own_bits(node: ov.Node) -> bool:
    """An output of the graph reads bits, too."""
    if node.get_type_name() not in BINARY_LAYERS:
        return False
    bits = node.input_value(0)
    return bits.get_node().get_type_name() == "BinaryPack" and len(bits.get_target_inputs()) == 1


def _fuse(pack: ov.Node, layer: ov.Node) -> None:
    inputs = [*pack.input_values(), *layer.input_values()[1:]]
    attributes = {**pack.get_attributes(), **layer.get_attributes()}
    fused = _factory().create(f"{PACKING}{layer.get_type_name()}", inputs, attributes)
    fused.set_friendly_name(layer.get_friendly_name())
    replace(layer.output(0), fused.output(0))


@functools.cache
def _factory() -> NodeFactory:
    made = NodeFactory()
    made.add_extension(str(extension_path()))
    return made
