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
from engines.passes.weighted import Weighted, weighted_layers, with_shifted_outputs
from engines.reference import Arrays, Reference

__all__ = ["See", "Walk", "with_means_of"]

See = Callable[[str, list[np.ndarray]], np.ndarray | None]
"""Called with the name of a value and what it is for each sample; what it returns is added to each."""

_HELD_BYTES = 2**30
"""Held for all samples together, between two pieces of the network, at most."""


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
            shift = see(piece.stop, [values[piece.stop] for values in held])
            for values in held:
                if shift is not None:
                    values[piece.stop] = values[piece.stop] + shift
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


def with_means_of(
    before: ModelProto, after: ModelProto, samples: Iterable[Arrays], kept: Mapping[str, np.ndarray | None]
) -> tuple[ModelProto, str]:
    """`after` with biases by which layers write, in the mean, what they write in `before`; and what is to be said.

    bias' = bias + E[y] - E[y']  (Nagel et al. 2019, section 4.2), y the layer's output in `before`, y' in `after`

    The means are over all samples and positions, one for each channel, in float64. `kept` names the layers (nodes of
    both models); its values are the channels of y that y' still has, None for all. The layers are put right one after
    the other: y' is made from what the ones before it write with their new biases. The samples are read once. Where
    they would need more than 1 GiB at once, the first ones do.
    """
    source = iter(samples)
    first = next(source, None)
    if first is None:
        return after, "biases are not corrected: there are no samples"
    layers = {layer.node.output[0]: layer for layer in weighted_layers(after.graph) if layer.node.name in kept}
    walk, was = Walk(after, layers), _Means(layers)
    each = walk([first], lambda _, arrays: None)
    taken = [first, *itertools.islice(source, max(0, _HELD_BYTES // max(1, each) - 1))]
    beside = Walk(before, layers)
    for sample in taken:
        beside([sample], was.add)
    shifts: dict[str, np.ndarray] = {}

    def correct(name: str, arrays: list[np.ndarray]) -> np.ndarray | None:
        layer, now = layers[name], _Means(layers)
        now.add(name, arrays)
        selected = kept[layer.node.name]
        want = was.of(name) if selected is None else was.of(name)[selected]
        shift = want - now.of(name)
        if not np.isfinite(shift).all():  # no mean tells anything of such values
            return None
        shifts[layer.node.name] = shift
        ones = [1] * (arrays[0].ndim - 2 if layer.channel_axis == 1 else 0)
        return shift.reshape(-1, *ones).astype(arrays[0].dtype)

    walk(taken, correct)
    left = next(source, None) is not None
    note = f"biases are corrected by the first {len(taken)} samples, which fill the memory allowed" if left else ""
    return with_shifted_outputs(after, shifts), note


class _Means:
    """The mean of each channel of named values, over any number of arrays; shapes may differ but for the channels."""

    def __init__(self, layers: Mapping[str, Weighted]) -> None:
        self._axes = {name: layer.channel_axis for name, layer in layers.items()}
        self._sums: dict[str, np.ndarray] = {}
        self._counts = dict.fromkeys(layers, 0)

    def add(self, name: str, arrays: list[np.ndarray]) -> None:
        for array in arrays:
            axis = self._axes[name] % array.ndim
            others = tuple(i for i in range(array.ndim) if i != axis)
            found = array.sum(axis=others, dtype=np.float64)
            self._sums[name] = self._sums[name] + found if name in self._sums else found
            self._counts[name] += array.size // max(1, array.shape[axis])

    def of(self, name: str) -> np.ndarray:
        return self._sums[name] / self._counts[name]
