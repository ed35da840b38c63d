"""Replace calls of local functions by what they call.

Algebra   f(x) = body(x), with the call's attributes put in and the body's own values renamed
Pattern   a node whose (domain, operator) is one of the model's functions, in any graph, in functions too
Check     the functions do not call themselves: the guard of uploads has refused those before
Rewrite   `onnx.inliner`; no target reads calls, and no later pass has to look into them
"""

from __future__ import annotations

import onnx.inliner
from onnx import ModelProto

__all__ = ["inline_functions"]


def inline_functions(model: ModelProto) -> tuple[ModelProto, str]:
    """The model without local functions. It is the same object where there are none."""
    if not model.functions:
        return model, ""
    # functions may be written for another version of the operators than the graph
    return onnx.inliner.inline_local_functions(model, convert_version=True), ""
