"""Bring a model into the one form that later passes and all targets read, checked after every step.

binary floats -> inline functions -> store constants -> couple gates -> opset 21 -> store shapes -> name nodes -> fold
batch norm
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx

from engines.errors import ModelRefused
from engines.graphs import all_nodes
from engines.legality import PassFailed, Rewrite, Verifier
from engines.operators import operators_of
from engines.passes.couple_gates import couple_gates
from engines.passes.inline import inline_functions
from engines.passes.names import name_nodes
from engines.passes.opset import to_opset_21
from engines.passes.stored_shapes import store_shapes
from engines.passes.weights import store_constants
from engines.plugins.ops import DOMAIN
from engines.reference import Reference
from engines.report import PassChange, change_of
from engines.steps import CANONICAL_PASSES

__all__ = ["PASSES", "Pass", "canonical"]


class Pass(NamedTuple):
    """`name` is what reports and errors call it. `may_fail`: the model serves without it too; a failure is a note."""

    name: str
    rewrite: Rewrite
    may_fail: bool = False


def _binary_floats(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Few models are stored in bits."""
    if not any(node.domain == DOMAIN for node in all_nodes(model.graph)):
        return model, ""
    from engines.passes.binary_floats import binary_floats

    return binary_floats(model)


def _fold_batchnorm(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Loading the rewriter takes longer than building a small model."""
    if not any(node.op_type == "BatchNormalization" for node in all_nodes(model.graph)):
        return model, ""
    from engines.passes.fold_batchnorm import fold_batchnorm

    return fold_batchnorm(model)


PASSES = (
    Pass("binary floats", _binary_floats),
    Pass("inline functions", inline_functions),
    Pass("store constants", store_constants),
    Pass("couple gates", couple_gates),
    Pass("opset 21", to_opset_21, may_fail=True),  # the converter and the rewriter are not ours
    Pass("store shapes", store_shapes),
    Pass("name nodes", name_nodes),
    Pass("fold batch norm", _fold_batchnorm, may_fail=True),
)
assert tuple(one.name for one in PASSES) == CANONICAL_PASSES, "a server and its plans' keys know them by name"


def canonical(
    model: onnx.ModelProto,
    reference: Reference | None = None,
    passes: Sequence[Pass] = PASSES,
    tell: Callable[[str], None] = lambda stage: None,
) -> tuple[onnx.ModelProto, tuple[PassChange, ...]]:
    """The model after all passes, and what each did. `model` itself is not changed.

    `reference` runs the model as it was sent (one is made where it is None); `tell` is told the passes by name as they
    begin, and the comparison. Raises PassFailed, a ModelRefused that
    names the pass, the rule it broke and the node where one is known.

    Running a large model takes longer than all passes. So answers are compared once, at the end; only where they differ
    do the passes run again, with a comparison after each, which tells the one that did it.
    """
    verifier = Verifier(model, reference or _reference(model))
    done, changes = _run(model, passes, verifier, tell, compare=False)
    tell("compare")
    if verifier.same_answers(model, done):
        return done, changes
    return _run(model, passes, verifier, tell, compare=True)


def _run(
    model: onnx.ModelProto, passes: Sequence[Pass], verifier: Verifier, tell: Callable[[str], None], *, compare: bool
) -> tuple[onnx.ModelProto, tuple[PassChange, ...]]:
    changes = []
    for one in passes:
        tell(one.name)
        model, change = _apply(one, model, verifier, compare=compare)
        changes.append(change)
    return model, tuple(changes)


def _apply(
    one: Pass, model: onnx.ModelProto, verifier: Verifier, *, compare: bool
) -> tuple[onnx.ModelProto, PassChange]:
    before = operators_of(model)
    after, note = model, ""
    try:
        after, note = _rewritten(one, model)
        if after is not model:
            verifier.verify_form(one.name, model, after)
            said = verifier.verify_answers(one.name, model, after, one.rewrite) if compare else verifier.unseen
            note = "; ".join(filter(None, [note, said]))
    except PassFailed as failed:
        if not one.may_fail:
            raise
        after, note = model, f"left out: {failed}"
    return after, change_of(one.name, before, operators_of(after), note)


def _rewritten(one: Pass, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    try:
        return one.rewrite(model)
    except Exception as error:
        raise PassFailed(one.name, "it runs to its end", str(error).splitlines()[0]) from error


def _reference(model: onnx.ModelProto) -> Reference | None:
    try:
        return Reference(model)
    except ModelRefused:
        return None
