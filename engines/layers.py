"""Which layer differs first between an engine and the reference, found by looking inside both.

A wrong value stands behind a wrong layer, or behind a wrong value that it reads. So the search starts at an output that
differs and cuts what that output depends on in two: the values that cross the cut are looked at. Where all are right,
the fault lies behind the cut; else before it, above one of those that are wrong. That holds with branches, and where an
error vanishes on the way (in a ReLU, say), which a search by order alone does not. Several cuts are looked at in one
compilation: looking inside keeps an engine from fusing there, but compiling costs most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from engines.batchproof import Difference, differs
from engines.graphs import reads_of
from engines.passes.calm_softmax import with_outputs
from engines.reference import Arrays

__all__ = ["FirstDifference", "first_differing_layer"]

Run = Callable[[Arrays], Arrays]
_CUTS = 7
_VALUES = 24
"""Cuts and values that are looked at in one compilation, at most; one cut may have more."""
_ROUNDS = 16
"""How often the search goes on because an engine answers otherwise when less of it is looked at."""


class FirstDifference(NamedTuple):
    """A node whose output differs by more than the bound while what it reads does not.

    `alone` is False where it answers right once all that it reads is looked at too: then it is wrong only as the engine
    runs it together with what is before it.
    """

    node: str
    op_type: str
    output: str
    difference: float
    bound: float
    alone: bool


def first_differing_layer(
    model: onnx.ModelProto, sample: Arrays, reference_of: Callable[[onnx.ModelProto], Run],
    engine_of: Callable[[onnx.ModelProto, Sequence[str]], Run], rounding: float,
) -> FirstDifference | None:  # fmt: skip
    """The first layer of the top graph that is wrong for `sample`, or None where none can be seen.

    `engine_of(opened, names)` compiles a model that also gives the named values; a run need not answer all of them.
    `rounding` is the relative rounding error that a value may have, as for `engines.batchproof.differs`. Where all
    outputs agree, all values are looked at in their order.
    """
    probe = _Probe(model, sample, reference_of, engine_of, rounding)
    wiring = _Wiring(model.graph)
    wrong = _first(wiring, probe, [value.name for value in model.graph.output if value.name in wiring.maker])
    if wrong is None:
        made = [name for names in wiring.makes for name in names]
        chunks = (made[at : at + _VALUES] for at in range(0, len(made), _VALUES))
        wrong = next((found for found in (_first(wiring, probe, chunk) for chunk in chunks) if found), None)
    if wrong is None:
        return None
    for _ in range(_ROUNDS):
        wrong = _narrow(wiring, probe, wrong)
        seen = probe.seen[wrong]
        probe.forget()
        reads = sorted(wiring.reads[wiring.maker[wrong]] & wiring.maker.keys())
        bad = probe([wrong, *reads])
        again = _first(wiring, probe, reads)
        if again is None:
            break
        wrong = again  # right in the company of all that was looked at, and wrong with less of it
    node = model.graph.node[wiring.maker[wrong]]
    return FirstDifference(node.name or wrong, node.op_type, wrong, seen.difference, seen.bound, wrong in bad)


def _narrow(wiring: _Wiring, probe: _Probe, wrong: str) -> str:
    """The wrong value nearest to the inputs that explains `wrong`."""
    floor = -1  # all that crosses the cut behind this node is right
    while above := [index for index in wiring.above(wiring.maker[wrong]) if index > floor]:
        cuts = _cuts(wiring, above, wiring.maker[wrong])
        bad = probe(name for _, names in cuts for name in names)
        for last, names in cuts:
            culprits = [name for name in names if name in bad]
            if culprits:
                wrong = min(culprits, key=lambda name: wiring.maker[name])
                break
            floor = last
    return wrong


def _cuts(wiring: _Wiring, above: list[int], end: int) -> list[tuple[int, list[str]]]:
    """(last node before the cut, values that cross it), evenly spread, in order; the middle one at least."""
    positions = sorted({above[(i + 1) * len(above) // (_CUTS + 1)] for i in range(_CUTS)} | {above[-1]})
    cuts = [(last, wiring.crossing(above, last, end)) for last in positions]
    while len(cuts) > 1 and len({name for _, names in cuts for name in names}) > _VALUES:
        cuts = cuts[1::2]
    return cuts


def _first(wiring: _Wiring, probe: _Probe, names: Sequence[str]) -> str | None:
    bad = probe(names)
    return min(bad, key=lambda name: wiring.maker[name], default=None)


class _Wiring:
    """Who makes and who reads the values of the top graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makes = [[name for name in node.output if name] for node in graph.node]
        self.maker = {name: index for index, names in enumerate(self.makes) for name in names}
        self.reads = [reads_of(node) for node in graph.node]

    def above(self, index: int) -> list[int]:
        """All nodes that this one depends on, in order."""
        found: set[int] = set()
        waiting = [index]
        while waiting:
            for name in self.reads[waiting.pop()]:
                maker = self.maker.get(name)
                if maker is not None and maker not in found:
                    found.add(maker)
                    waiting.append(maker)
        return sorted(found)

    def crossing(self, above: Sequence[int], last: int, end: int) -> list[str]:
        """Values made by the nodes `above` up to `last` that a later one, or `end`, reads."""
        read = {name for index in [*above, end] if index > last for name in self.reads[index]}
        return [name for index in above if index <= last for name in self.makes[index] if name in read]


class _Probe:
    """Looks at values in engine and reference; remembers what it saw."""

    def __init__(
        self, model: onnx.ModelProto, sample: Arrays, reference_of: Callable[[onnx.ModelProto], Run],
        engine_of: Callable[[onnx.ModelProto, Sequence[str]], Run], rounding: float,
    ) -> None:  # fmt: skip
        self._model, self._sample, self._rounding = model, sample, rounding
        self._reference_of, self._engine_of = reference_of, engine_of
        self.seen: dict[str, Difference] = {}

    def __call__(self, names: Iterable[str]) -> set[str]:
        """Those of the named values that differ."""
        asked = list(dict.fromkeys(names))
        self._look([name for name in asked if name not in self.seen])
        return {name for name in asked if self.seen[name].differs}

    def forget(self) -> None:
        self.seen = {}

    def _look(self, names: list[str]) -> None:
        if not names:
            return
        opened = with_outputs(self._model, names)
        try:
            want, got = self._reference_of(opened)(self._sample), self._engine_of(opened, names)(self._sample)
        except Exception:  # a value of a kind that cannot be given, a sequence say; the others still can
            if len(names) > 1:
                self._look(names[: len(names) // 2])
                self._look(names[len(names) // 2 :])
                return
            want = got = {}
        for name in names:
            self.seen[name] = self._difference(want.get(name), got.get(name))

    def _difference(self, want: np.ndarray | None, got: np.ndarray | None) -> Difference:
        if want is None or got is None or want.dtype.kind not in "fiub":
            return Difference(False, 0.0, 0.0)
        return differs(want, got, self._rounding)
