"""Order equal values of a TopK as ONNX does: the lower index first. OpenVINO 2026.4 does so where it is told to."""

from __future__ import annotations

import openvino as ov
from openvino import opset11 as ops

from engines.targets.openvino_bodies import nodes_of, replace

__all__ = ["keep_order_of_equals"]


def keep_order_of_equals(graph: ov.Model) -> None:
    """Make every TopK a stable one, bodies included. What is to be unsorted is sorted too: only that can be stable."""
    for node in nodes_of(graph):
        if node.get_type_name() != "TopK":
            continue
        given = node.get_attributes()
        stable = ops.topk(
            node.input_value(0), node.input_value(1), axis=given["axis"], mode=given["mode"],
            sort="index" if given["sort"] == "index" else "value", index_element_type=given["index_element_type"],
            stable=True,
        )  # fmt: skip
        stable.set_friendly_name(node.get_friendly_name())
        for old, new in zip(node.outputs(), stable.outputs(), strict=True):
            replace(old, new)
