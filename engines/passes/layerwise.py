"""Run a model over samples from layer to layer, so that a layer can be put right before the next one reads it.

The graph is cut behind every value that is to be looked at. All samples pass one piece before any passes the next, so
one run through the network corrects every layer for inputs that are corrected already; what is held between two pieces
is only what the pieces to come read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, helper

from engines.graphs import reads_of
from engines.passes.weighted import Change, Weighted, scalable, weighted_layers, with_changed_outputs
from engines.reference import Arrays, Reference

__all__ = ["See", "Walk", "with_statistics_of"]

See = Callable[[str, list[np.ndarray]], tuple[np.ndarray, np.ndarray] | None]
"""Called with the name of a value and what it is for each sample; of what it returns, each is multiplied by the first
and gets the second added.
"""

_HELD_BYTES = 2**30
"""Held for all samples together, between two pieces of the network, at most."""
_MOST = 2.0
_ENOUGH = 32
"""Samples times positions from which on a deviation says enough to scale by."""
_NOISE = 1e-9
"""Share of the mean square that is rounding: a constant has no deviation to be matched."""


class _Piece(NamedTuple):
    """Nodes to run, and the value that is looked at behind them ("" is none)."""

    nodes: list[int]
    stop: str
    reads: list[str]
    gives: list[str]
    last_reads: list[str]


class Walk:
    """The way through the top graph of `model` past the values `stops` (made by nodes, or inputs), in their order."""

    def __init__(self, model: ModelProto, stops: Iterable[str]) -> None:
        self._model = model
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._pieces = _pieces(model, set(stops), self._stored)
        self._runs: list[Reference | None] = [None] * len(self._pieces)

    def __call__(self, samples: Sequence[Arrays], see: See) -> int:
        """Show every stop of all samples; returns the most bytes that were held. ONNX Runtime's errors pass through."""
        held = [dict(sample) for sample in samples]
        most = 0
        for index, piece in enumerate(self._pieces):
            for values in held:
                if piece.nodes:
                    values.update(self._run(index, values))
                for name in piece.last_reads:
                    values.pop(name, None)
            most = max(most, sum(array.nbytes for values in held for array in values.values()))
            change = see(piece.stop, [values[piece.stop] for values in held])
            for values in held:
                if change is not None:
                    values[piece.stop] = values[piece.stop] * change[0] + change[1]
        return most

    def _run(self, index: int, values: Arrays) -> Arrays:
        piece = self._pieces[index]
        run = self._runs[index]
        if run is None:
            run = self._runs[index] = Reference(self._cut_out(piece, values), kept_bytes=0)
        return run({name: values[name] for name in piece.reads})

    def _cut_out(self, piece: _Piece, values: Arrays) -> ModelProto:
        nodes = [self._model.graph.node[i] for i in piece.nodes]
        weights = set().union(*(reads_of(node) for node in nodes)) & self._stored.keys()
        graph = helper.make_graph(
            nodes,
            "piece",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None)
                for name in piece.reads
            ],
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in piece.gives],
            [tensor for name, tensor in self._stored.items() if name in weights],
        )
        for value in graph.output:  # its type is the runtime's business
            value.ClearField("type")
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
        )


def _pieces(model: ModelProto, stops: set[str], stored: Mapping[str, TensorProto]) -> list[_Piece]:
    nodes = model.graph.node
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    known = maker.keys() | {value.name for value in model.graph.input if value.name not in stored}
    reads = [reads_of(node) & known for node in nodes]
    needed = _needed(reads, maker, stops)
    order = sorted(stops, key=lambda name: (maker.get(name, -1), name))
    ends = [maker.get(name, -1) for name in order]
    parts = [[i for i in range(a + 1, b + 1) if i in needed] for a, b in itertools.pairwise([-1, *ends])]
    last = {name: k for k, part in enumerate(parts) for i in part for name in reads[i]}
    pieces = []
    for k, (stop, part) in enumerate(zip(order, parts, strict=True)):
        made = {name for i in part for name in nodes[i].output if name}
        outside = set().union(*(reads[i] for i in part)) - made
        gives = {name for name in made if name in stops or last.get(name, -1) > k}
        gone = {name for name in known if last.get(name, -1) <= k and maker.get(name, -1) <= ends[k] and name != stop}
        later = {name for name in stops if order.index(name) > k}
        pieces.append(_Piece(part, stop, sorted(outside), sorted(gives), sorted(gone - later)))
    return pieces


def _needed(reads: Sequence[set[str]], maker: Mapping[str, int], stops: set[str]) -> set[int]:
    needed: set[int] = set()
    waiting = [maker[name] for name in stops if name in maker]
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting.extend(maker[name] for name in reads[index] if name in maker)
    return needed


def with_statistics_of(
    before: ModelProto, after: ModelProto, samples: Iterable[Arrays], kept: Mapping[str, np.ndarray | None]
) -> tuple[ModelProto, str]:
    """`after` with layers that write, in mean and deviation, what they write in `before`; and what is to be said.

    y'' = s (y' - E[y']) + E[y],  s = sqrt(Var[y] / Var[y']), y the output of a layer in `before`, y' in `after`

    The mean alone is the correction of Nagel et al. 2019, section 4.2. A pruned layer also writes less far from its
    mean, and behind a ReLU ever less comes through from layer to layer; s undoes that (as Jordan et al. 2023 do for
    merged networks). s goes into the weights, whose zeros stay, and the rest into the bias. s lies in [1/2, 2]; it is 1
    where several layers share weights, where a bias is computed, and where fewer than 32 places were seen.

    Mean and variance are over all samples and positions, for each channel, in float64. `kept` names the layers (nodes
    of both models); its values are the channels of y that y' still has, None for all. The layers are put right one
    after the other: y' is made from what the ones before it write once they are. The samples are read once. Where they
    would need more than 1 GiB at once, the first ones do.
    """
    source = iter(samples)
    first = next(source, None)
    if first is None:
        return after, "biases are not corrected: there are no samples"
    layers = {layer.node.output[0]: layer for layer in weighted_layers(after.graph) if layer.node.name in kept}
    rigid = {layer.node.name for layer in layers.values()} - scalable(after.graph)
    walk, was = Walk(after, layers), _Statistics(layers)
    each = walk([first], lambda _, arrays: None)
    taken = [first, *itertools.islice(source, max(0, _HELD_BYTES // max(1, each) - 1))]
    beside = Walk(before, layers)
    for sample in taken:
        beside([sample], was.add)
    changes: dict[str, Change] = {}

    def correct(name: str, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        layer, now = layers[name], _Statistics(layers)
        now.add(name, arrays)
        scaled = layer.node.name not in rigid and now.count(name) >= _ENOUGH
        change = _change(was.of(name, kept[layer.node.name]), now.of(name, None), scaled=scaled)
        if change is None:
            return None
        changes[layer.node.name] = change
        ones = [1] * (arrays[0].ndim - 2 if layer.channel_axis == 1 else 0)
        scale, shift = (numbers.reshape(-1, *ones).astype(arrays[0].dtype) for numbers in change)
        return scale, shift

    walk(taken, correct)
    left = next(source, None) is not None
    note = f"biases are corrected by the first {len(taken)} samples, which fill the memory allowed" if left else ""
    return with_changed_outputs(after, changes), note


def _change(want: tuple[np.ndarray, np.ndarray], have: tuple[np.ndarray, np.ndarray], *, scaled: bool) -> Change | None:
    """From (mean, variance) to (scale, shift); None where they are not finite and so tell nothing."""
    if not all(np.isfinite(numbers).all() for numbers in (*want, *have)):
        return None
    varies = (want[1] > 0) & (have[1] > 0)
    ratio = np.sqrt(np.where(varies, want[1], 1.0) / np.where(varies, have[1], 1.0))
    scale = np.clip(ratio, 1 / _MOST, _MOST) if scaled else np.ones_like(ratio)
    return Change(scale, want[0] - scale * have[0])


class _Statistics:
    """Mean and variance of each channel of named values, over any number of arrays, whose positions may differ."""

    def __init__(self, layers: Mapping[str, Weighted]) -> None:
        self._axes = {name: layer.channel_axis for name, layer in layers.items()}
        self._sums: dict[str, np.ndarray] = {}
        self._counts = dict.fromkeys(layers, 0)

    def add(self, name: str, arrays: list[np.ndarray]) -> None:
        for array in arrays:
            axis = self._axes[name] % array.ndim
            rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            squares = np.einsum("cp,cp->c", rows, rows, dtype=np.float64)
            found = np.stack([rows.sum(axis=1, dtype=np.float64), squares])
            self._sums[name] = self._sums[name] + found if name in self._sums else found
            self._counts[name] += rows.shape[1]

    def count(self, name: str) -> int:
        return self._counts[name]

    def of(self, name: str, channels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        mean, square = self._sums[name] / max(1, self._counts[name])
        variance = np.maximum(0.0, square - mean**2)
        variance[variance <= _NOISE * square] = 0.0
        return (mean, variance) if channels is None else (mean[channels], variance[channels])
