"""What has to hold after every pass over a graph: same interface, defined values, ONNX's rules, the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx

from engines.batchproof import differs
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.frontend.ranges import takes_sizes_from_values
from engines.graphs import all_nodes, without_weights
from engines.layers import first_differing_layer
from engines.passes.calm_softmax import saturating_inputs, with_outputs
from engines.passes.names import with_plain_names
from engines.passes.random_weights import with_moved_weights, with_random_weights
from engines.passes.widen import has_halves
from engines.reference import Arrays, Reference
from engines.samples import find_sampler, integer_limits
from engines.tensor import DYNAMIC
from engines.verify import rounding_bound

__all__ = ["PassFailed", "Rewrite", "Verifier", "checked_form"]

Rewrite = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, str]]
"""A pass: the model after it (the same object where nothing changed), and what is to be said of it."""

_TIES = 0.01
_HALF_BOUND = 2.0**-5
_LARGE_ANSWER = 2**24
"""Bytes from which on two samples have to do: sizes drawn by chance may ask for gigabytes."""
_SAME_ANSWERS = "same answers"
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


class PassFailed(ModelRefused):
    """A pass made something else of the model. `rule` is what it broke, `node` where, if that is known."""

    def __init__(self, name: str, rule: str, detail: str, node: str = "") -> None:
        super().__init__(f"pass {name!r} broke the rule {rule!r}: {detail}")
        self.name, self.rule, self.node = name, rule, node


class Verifier:
    """Holds the answers of the model as it was sent. `reference` runs it, None where ONNX Runtime cannot.

    `unseen` says so where answers cannot be compared, or tell nothing, and why. A softmax of large numbers is 1 at one
    place whatever the weights are: where an output is the same for all samples, what such nodes read is compared too.
    """

    def __init__(self, model: onnx.ModelProto, reference: Reference | None) -> None:
        self._reference = reference
        self._rounding = max(rounding_bound(model), _HALF_BOUND if has_halves(model) else 0.0)
        # what the sent model breaks already is not a pass's fault; it may well be served
        self._checks = [full for full in (True, False) if not _checker_says(model, full=full)]
        self._rows, reason = _samples(model, reference)
        self.unseen = f"answers were not compared: {reason}" if reason else ""
        self._opened: list[str] = []
        if self._rows and self._reference and _is_blind(self._reference, self._rows, self._rounding):
            self._opened = saturating_inputs(model)
            self._reference = Reference(with_outputs(model, self._opened)) if self._opened else reference
            if self._reference and _is_blind(self._reference, self._rows, self._rounding, self._opened):
                self.unseen = "every sample is answered alike, so that a change of the answers may not show"

    def verify_form(self, name: str, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        """Raise PassFailed where the pass `name` broke a rule that can be seen without running the model."""
        said = _checker_says(after, full=self._checks[0]) if self._checks else ""
        _require_form(name, before, after, said)

    def same_answers(self, before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
        """Whether the answers are those of the model as it was sent, as far as they can be compared."""
        if after is before or not self._rows or _same_but_names(before, after):
            return True
        assert self._reference is not None
        try:
            return not _difference(self._reference, self._run_of(after), self._rows, self._rounding)
        except Exception:
            return False

    def verify_answers(self, name: str, before: onnx.ModelProto, after: onnx.ModelProto, rewrite: Rewrite) -> str:
        """Raise PassFailed where the pass `name` changed the answers. A note says how they were compared, if otherwise.

        A model whose answers are only rounding (they change when its weights move by one unit in the last place) is
        judged by what `rewrite` makes of its twin with random weights.
        """
        if _same_but_names(before, after) or not self._rows:
            return self.unseen
        assert self._reference is not None
        try:
            found = _difference(self._reference, self._run_of(after), self._rows, self._rounding)
        except Exception as error:
            raise PassFailed(name, _SAME_ANSWERS, f"ONNX Runtime cannot run it any more: {_line(error)}") from error
        if not found:
            return self.unseen
        if _difference(Reference(before), Reference(with_moved_weights(before)), self._rows, self._rounding):
            twin = with_random_weights(before)
            if not _difference(Reference(twin), Reference(rewrite(twin)[0]), self._rows, self._rounding):
                return "answers are decided by rounding, so a twin with random weights was compared instead"
        node = _where(before, after, self._rows, self._rounding)
        raise PassFailed(name, _SAME_ANSWERS, f"{found}{f', first at node {node!r}' if node else ''}", node)

    def _run_of(self, model: onnx.ModelProto) -> Reference:
        made = {name for node in model.graph.node for name in node.output}
        return Reference(with_outputs(model, [name for name in self._opened if name in made]))


def checked_form(
    name: str, before: onnx.ModelProto, after: onnx.ModelProto, *, new_types: bool = False
) -> onnx.ModelProto:
    """`after`, which the pass `name` made of `before`, where it broke no rule that can be seen without running it.

    `new_types`: other sizes and datatypes of inputs and outputs are what the pass is for; their names stay. Raises
    PassFailed.
    """
    if after is not before:
        said = [_checker_says(after, full=True)]
        if said[0] and _checker_says(before, full=True):  # not this pass's fault; the plain rules may still hold
            said = [] if _checker_says(before, full=False) else [_checker_says(after, full=False)]
        _require_form(name, before, after, "".join(said), new_types=new_types)
    return after


def _require_form(
    name: str, before: onnx.ModelProto, after: onnx.ModelProto, said: str, *, new_types: bool = False
) -> None:
    """Raise PassFailed with the first rule that is broken; `said` is what the checker of ONNX has to say."""
    for rule, found in _structure(before, after, said, new_types=new_types):
        if found:
            node, detail = found
            raise PassFailed(name, rule, detail, node)


def _structure(
    before: onnx.ModelProto, after: onnx.ModelProto, said: str, *, new_types: bool
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    yield "same inputs", _changed("input", _inputs(before), _inputs(after), new_types=new_types)
    yield "same outputs", _changed("output", _outputs(before), _outputs(after), new_types=new_types)
    yield "every value is made once, before it is read", _undefined(after.graph, set())
    yield "the checker of ONNX accepts it", ("", said) if said else None


def _samples(model: onnx.ModelProto, reference: Reference | None) -> tuple[list[Arrays], str]:
    """Inputs to compare answers on, or none and why."""
    if reference is None:
        return [], "ONNX Runtime refuses the model as it was sent"
    if any(node.op_type in _RANDOM for node in all_nodes(model.graph)):
        return [], "they are random"
    try:
        inputs, _ = tensor_specs(model)
    except ModelRefused as refused:
        return [], str(refused)
    reason, limits = "", integer_limits(takes_sizes_from_values(model))
    for axes in ({spec.name: 0 for spec in inputs if spec.shape[:1] == (DYNAMIC,)}, {}):
        try:
            rows = find_sampler(inputs, axes, reference, limits).rows()
        except ModelRefused as refused:
            reason = reason or str(refused)
        else:
            size = sum(array.nbytes for array in reference(rows[0]).values())
            return rows if size < _LARGE_ANSWER else rows[:2], ""
    return [], reason


def _is_blind(reference: Reference, rows: Sequence[Arrays], rounding: float, names: Sequence[str] = ()) -> bool:
    """Whether one of the named outputs (of all, where none are named) is the same for every sample."""
    first, *others = (reference(row) for row in rows)
    return any(
        not any(differs(first[name], other[name], rounding).differs for other in others) for name in names or first
    )


def _difference(before: Reference, after: Reference, rows: Sequence[Arrays], rounding: float) -> str:
    for row in rows:
        want, got = before(row), after(row)
        for name in sorted(want.keys() & got.keys()):  # all outputs; what is looked at besides may be gone
            array = want[name]
            found = differs(array, got[name], rounding)
            # whole numbers behind a rounding or an argmax may flip on a tie
            tie = array.dtype.kind in "iub" and found.difference <= _TIES * array.size
            if found.differs and not tie:
                return f"output {name!r} is off by {found.difference:.3g}, bound {found.bound:.3g}"
    return ""


def _where(before: onnx.ModelProto, after: onnx.ModelProto, rows: Sequence[Arrays], rounding: float) -> str:
    """The first node, as it was called before, behind which both differ; nothing where that cannot be told."""
    there = {name for node in after.graph.node for name in node.output}

    def inside(_: onnx.ModelProto, names: Sequence[str]) -> Reference:
        return Reference(with_outputs(after, [name for name in names if name in there]))

    for row in rows:
        found = first_differing_layer(before, row, Reference, inside, rounding)
        if found:
            return found.node
    return ""


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _outputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return list(model.graph.output)


def _changed(
    kind: str, before: Sequence[onnx.ValueInfoProto], after: Sequence[onnx.ValueInfoProto], *, new_types: bool
) -> tuple[str, str] | None:
    names, now = [value.name for value in before], [value.name for value in after]
    if names != now:
        return "", f"{kind}s were {names}, and are {now}"
    for old, new in zip(before, after, strict=True):
        if old.type != new.type and not new_types:
            return "", f"{kind} {old.name!r} has another type or shape than before"
    return None


def _undefined(graph: onnx.GraphProto, around: set[str]) -> tuple[str, str] | None:
    """(node, what is wrong) of the first value that is read before it is made, or made twice."""
    known = {*around, "", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        unknown = [name for name in node.input if name not in known]
        if unknown:
            return node.name, f"node {node.name!r} ({node.op_type}) reads {unknown[0]!r}, which nothing made before it"
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found = _undefined(body, known)
                if found:
                    return found
        again = [name for name in node.output if name and name in known]
        if again:
            return node.name, f"node {node.name!r} ({node.op_type}) makes {again[0]!r}, which is there already"
        known.update(node.output)
    missing = [value.name for value in graph.output if value.name not in known]
    return ("", f"nothing makes output {missing[0]!r}") if missing else None


def _checker_says(model: onnx.ModelProto, *, full: bool) -> str:
    try:
        onnx.checker.check_model(without_weights(model)[0], full_check=full)
    except Exception as error:
        return _line(error)
    return ""


def _same_but_names(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    """Whether only names of nodes differ: then the answers are the same without being run."""
    (bare, weights), (now, new_weights) = without_weights(before), without_weights(after)
    return with_plain_names(bare) == with_plain_names(now) and weights == new_weights


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
