"""Keep weights that are stored in half precision so in what OpenVINO exports; it computes in FP32 all the same.

The CPU plugin of 2026.4 folds a Cast of stored FP16 into FP32 constants and exports those, so a blob would be no
smaller. It leaves the Convert of a decompression alone where a convolution or a product reads it, and widens those
weights as it prepares the layer, at every load. OpenVINO's own compression sets the mark of one; it is set here for
weights that are halves already. Profiles call such a layer fp16: that is the type of its weights, its kernel is FP32.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino.passes import ConstantFolding, Manager

from engines.passes.stored_half import FEWEST

__all__ = ["keep_halves"]

_MARK = "decompression_0"
"""OpenVINO's name of the attribute; that it is there is all that is looked at."""


def keep_halves(graph: ov.Model) -> int:
    """Store every FP32 constant of 256 numbers or more that are all FP16 numbers as such; returns how many there are.

    No value changes. What is computed of constants (the order of gates, a transposition) is computed first, in place of
    being computed behind the Convert, where the plugin would fold it. Bodies of If and of loops are left alone.
    The plugin itself widens the weights of recurrent layers, and weights that it multiplies into others, nonetheless.
    """
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(graph)
    stored = 0
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32:
            stored += _keep(node)
    return stored


def _keep(node: ov.Node) -> bool:
    wide = node.get_data()
    if wide.size < FEWEST or not _is_half(wide):
        return False
    half = ops.constant(wide.astype(np.float16))
    half.set_friendly_name(f"{node.get_friendly_name()}.half")
    convert = ops.convert(half, "f32")
    convert.get_rt_info()[_MARK] = ""
    convert.set_friendly_name(node.get_friendly_name())
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(convert.output(0))
    return True


def _is_half(wide: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(wide.astype(np.float16), wide, equal_nan=True)
