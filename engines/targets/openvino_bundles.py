"""Store what a binary layer alone reads of the file as one constant.

Where the number of rows is not known before, OpenVINO 2026.4 infers the shapes of an extension's operator anew in every
run, with another of its kind: it makes a node of each input, which takes about a microsecond.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from engines.targets.openvino_bodies import replace
from engines.targets.openvino_fused import BINARY_LAYERS, BUNDLED, INPUT, fused, kind_of

__all__ = ["bundle_stored"]

_KINDS = {"i32": 1, "f32": 2}


def bundle_stored(graph: ov.Model) -> int:
    """Of every binary layer with several such inputs; returns how many there are. The layer keeps its name."""
    layers = [node for node in graph.get_ordered_ops() if kind_of(node) in BINARY_LAYERS]
    return sum(_bundle(layer) for layer in layers)


def _bundle(layer: ov.Node) -> bool:
    values = [(value, _is_own(value)) for value in layer.input_values()]
    words = [_words(value) for value, is_own in values if is_own]
    if len(words) < 2:
        return False
    inputs = [value for value, is_own in values if not is_own]
    parts = [number for value, is_own in values for number in (_part(value) if is_own else [INPUT])]
    made = fused(BUNDLED, layer, [*inputs, ops.constant(np.concatenate(words)).output(0)], {"parts": parts})
    replace(layer.output(0), made.output(0))
    return True


def _is_own(value: ov.Output) -> bool:
    """Two planes of signs share their weights, which need not be there twice."""
    return value.get_node().get_type_name() == "Constant" and len(value.get_target_inputs()) == 1


def _words(value: ov.Output) -> np.ndarray:
    data: np.ndarray = value.get_node().get_data()
    return np.ascontiguousarray(data).reshape(-1).view(np.int32)


def _part(value: ov.Output) -> list[int]:
    shape = list(value.get_shape())
    return [_KINDS[value.get_element_type().get_type_name()], len(shape), *shape]
