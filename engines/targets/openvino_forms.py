"""Refuse operators in forms that OpenVINO 2026.4 is known to answer wrongly on the CPU, before a bound could hide it.

A difference that only some sizes or values show may lie below what rounding is allowed in the samples of a build. What
can be written in another way is written so instead (`engines.passes`), and what only some values show is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.graphs import all_graphs, all_nodes
from engines.operators import listed, operator_of

__all__ = ["refuse_wrong_forms", "wrong_form"]

Stored = Mapping[str, TensorProto]


def refuse_wrong_forms(model: ModelProto) -> None:
    """Raises ModelRefused with every node that has such a form, and what is wrong with it."""
    stored = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    found: dict[str, list[tuple[str, str]]] = {}
    for node in all_nodes(model.graph):
        reason = wrong_form(node, stored)
        if reason:
            found.setdefault(reason, []).append((operator_of(node), node.name or next(iter(node.output), "")))
    if found:
        said = "; ".join(f"{listed(nodes)}: {reason}" for reason, nodes in found.items())
        raise ModelRefused(f"OpenVINO answers these operators wrongly as they are used: {said}")


def wrong_form(node: NodeProto, stored: Stored) -> str:
    """What the engine does wrongly with a node, or nothing. `stored` are the initializers, by name."""
    check = _FORMS.get(operator_of(node))
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return check(node, given, stored) if check else ""


def _resize(node: NodeProto, given: Mapping[str, Any], stored: Stored) -> str:
    if given.get("mode") == b"cubic" and given.get("exclude_outside"):
        return "it does not leave out the pixels outside (exclude_outside)"
    if given.get("antialias") and not _only_enlarges(node, stored):
        return "where it shrinks, its antialias has other weights"
    if given.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return f"it does not keep the aspect ratio ({given['keep_aspect_ratio_policy'].decode()})"
    return ""


def _only_enlarges(node: NodeProto, stored: Stored) -> bool:
    scales = stored.get(node.input[2]) if len(node.input) > 2 else None
    return scales is not None and bool(np.all(numpy_helper.to_array(scales) >= 1))


def _lp_pool(node: NodeProto, given: Mapping[str, Any], stored: Stored) -> str:
    return "its last window is not as ceil_mode asks for" if given.get("ceil_mode") else ""


_FORMS: dict[str, Callable[[NodeProto, Mapping[str, Any], Stored], str]] = {"LpPool": _lp_pool, "Resize": _resize}
