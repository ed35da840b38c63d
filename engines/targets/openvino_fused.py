"""Operators that do what a binary layer and another one do: made in OpenVINO's graph alone, no front end reads them.

Their type is that of the layer behind what is done with it: `PackingBinaryGemm`,
`BundledPackingAddingBinaryConv2d`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import openvino as ov
from openvino.utils.node_factory import NodeFactory

from engines.plugins.extension import extension_path

__all__ = ["ADDING", "BINARY_LAYERS", "BUNDLED", "INPUT", "PACKING", "fused", "kind_of", "weights_shape"]

BINARY_LAYERS = frozenset({"BinaryConv2d", "BinaryThreshold2d", "BinaryGemm", "BinaryThreshold"})
BUNDLED, PACKING, ADDING = "Bundled", "Packing", "Adding"
INPUT = 0
"""Among parts of what a layer reads: one that is not stored with others."""


def kind_of(node: ov.Node) -> str:
    """The type, of the layer where it is one."""
    return str(node.get_type_name()).removeprefix(BUNDLED).removeprefix(PACKING).removeprefix(ADDING)


def weights_shape(layer: ov.Node) -> list[int]:
    """[filters, ..., words]. Where a layer packs, floats and thresholds stand in the place of bits."""
    packs = str(layer.get_type_name()).removeprefix(BUNDLED).startswith(PACKING)
    return _read_shapes(layer)[2 if packs else 1]


def _read_shapes(layer: ov.Node) -> list[list[int]]:
    """Of what it reads, in order: -1 for sizes that are not known. Parts of a bundle are told by an attribute."""
    inputs = iter([_sizes(value.get_partial_shape()) for value in layer.input_values()])
    parts = iter(layer.get_attributes().get("parts", [INPUT] * layer.get_input_size()))
    return [next(inputs) if kind == INPUT else [next(parts) for _ in range(next(parts))] for kind in parts]


def _sizes(shape: ov.PartialShape) -> list[int]:
    return [size.get_length() if size.is_static else -1 for size in list(shape)]


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
