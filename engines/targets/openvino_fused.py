"""Operators that do what a binary layer and another one do: made in OpenVINO's graph alone, no front end reads them.

Their type is that of the layer behind what is done with it: `PackingBinaryGemm`, `PackingAddingBinaryConv2d`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import openvino as ov
from openvino.utils.node_factory import NodeFactory

from engines.plugins.extension import extension_path

__all__ = ["ADDING", "BINARY_LAYERS", "PACKING", "fused", "kind_of", "weights_of"]

BINARY_LAYERS = frozenset({"BinaryConv2d", "BinaryThreshold2d", "BinaryGemm", "BinaryThreshold"})
PACKING, ADDING = "Packing", "Adding"


def kind_of(node: ov.Node) -> str:
    """The type, of the layer where it is one."""
    return str(node.get_type_name()).removeprefix(PACKING).removeprefix(ADDING)


def weights_of(layer: ov.Node) -> ov.Output:
    """INT32, bits of a filter last. Where a layer packs, floats and thresholds stand in the place of bits."""
    return layer.input_value(2 if layer.get_type_name().startswith(PACKING) else 1)


def fused(what: str, layer: ov.Node, inputs: Sequence[ov.Output], further: Mapping[str, Any] | None = None) -> ov.Node:
    """The layer that does `what`, too: it has these inputs, further attributes, and the layer's name."""
    attributes = {**layer.get_attributes(), **(further or {})}
    made: ov.Node = _factory().create(f"{what}{layer.get_type_name()}", [*inputs], attributes)
    made.set_friendly_name(layer.get_friendly_name())
    return made


@functools.cache
def _factory() -> NodeFactory:
    factory = NodeFactory()
    factory.add_extension(str(extension_path()))
    return factory
