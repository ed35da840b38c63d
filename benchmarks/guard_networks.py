"""Networks with random weights that compute indices, masks and integers, as exports do: what guards are put on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engines.reference import Arrays
from tests.passes.networks import encoder
from tests.support.onnx_models import build

__all__ = ["NETWORKS", "detector", "masked_encoder", "tagger"]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
VOCABULARY, POSITIONS = 50, 66
node = helper.make_node


def _random(*shape: int) -> np.ndarray:
    scale = np.float32(np.sqrt(1 / np.prod(shape[1:-1] if len(shape) == 4 else shape[-1:])))
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * scale


def masked_encoder() -> tuple[onnx.ModelProto, Arrays]:
    """An encoder of 4 layers, 256 wide; positions are counted past padding and looked up, the answer is the mean over
    what is no padding. Tokens int64 [8, 64], some of them padding (0).
    """
    width = 256
    model = encoder(width, heads=8, layers=4)
    graph = model.graph
    stored = {
        "pad": np.int64(0), "one": np.int64(1), "along": np.array(1, np.int64), "axes": np.array([1], np.int64),
        "last": np.array([2], np.int64), "P": _random(POSITIONS, width),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items())
    graph.node[0].output[0] = "words"
    positions = [
        node("Equal", ["x", "pad"], ["is_pad"]),
        node("Not", ["is_pad"], ["is_word"]),
        node("Cast", ["is_word"], ["mask"], to=INT64),
        node("CumSum", ["mask", "along"], ["counted"]),
        node("Mul", ["counted", "mask"], ["masked"]),
        node("Add", ["masked", "one"], ["position"]),
        node("Gather", ["P", "position"], ["places"]),
        node("Add", ["words", "places"], ["h0"]),
    ]
    layers = list(graph.node)
    del graph.node[:]
    graph.node.extend([layers[0], *positions, *layers[1:], *_mean_of_words()])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("mean", FLOAT, ["N", width]))
    onnx.checker.check_model(model, full_check=True)
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (8, 64))
    tokens[:, 50:] = 0
    return model, {"x": tokens}


def _mean_of_words() -> list[NodeProto]:
    return [
        node("ReduceSum", ["mask", "axes"], ["words_each"], keepdims=1),
        node("Cast", ["words_each"], ["divisor"], to=FLOAT),
        node("Cast", ["mask"], ["weights"], to=FLOAT),
        node("Unsqueeze", ["weights", "last"], ["weights_each"]),
        node("Mul", ["y", "weights_each"], ["kept"]),
        node("ReduceSum", ["kept", "axes"], ["sum"], keepdims=0),
        node("Div", ["sum", "divisor"], ["mean"]),
    ]


def tagger() -> tuple[onnx.ModelProto, Arrays]:
    """A bidirectional LSTM, 128 wide each way; words are hashed into a table, and each tag's row of another is added.

    Words int64 [8, 64] -> scores of 17 tags.
    """
    hidden, rows, width, tags = 128, 5000, 128, 17
    stored = {
        "rows": np.int64(rows), "E": _random(rows, width), "W": _random(2, 4 * hidden, width),
        "R": _random(2, 4 * hidden, hidden), "B": np.zeros((2, 8 * hidden), np.float32),
        "join": np.array([0, 0, -1], np.int64), "O": _random(2 * hidden, tags), "T": _random(tags, tags),
    }  # fmt: skip
    nodes = [
        node("Mod", ["x", "rows"], ["hashed"]),
        node("Gather", ["E", "hashed"], ["words"]),
        node("Transpose", ["words"], ["steps"], perm=[1, 0, 2]),
        node("LSTM", ["steps", "W", "R", "B"], ["ways"], hidden_size=hidden, direction="bidirectional"),
        node("Transpose", ["ways"], ["turned"], perm=[2, 0, 1, 3]),
        node("Reshape", ["turned", "join"], ["states"]),
        node("MatMul", ["states", "O"], ["scores"]),
        node("ArgMax", ["scores"], ["tag"], axis=-1, keepdims=0),
        node("Gather", ["T", "tag"], ["follows"]),
        node("Add", ["scores", "follows"], ["y"]),
    ]
    model = build(nodes, {"x": (INT64, ["N", "T"])}, {"y": (FLOAT, ["N", "T", tags])}, stored, 17)
    return model, {"x": np.random.default_rng(0).integers(0, 10**6, (8, 64))}


def detector() -> tuple[onnx.ModelProto, Arrays]:
    """Five convolutions, then boxes and scores of 1600 places: the best 100, of them those that score enough.

    Image float32 [1, 3, 320, 320] -> boxes [?, 4] and their scores [?].
    """
    channels, nodes, last = (3, 32, 64, 128, 128), [], "image"
    stored = {
        "flat": np.array([-1], np.int64), "fours": np.array([-1, 4], np.int64), "k": np.array([100], np.int64),
        "enough": np.float32(0.5),
    }  # fmt: skip
    for i, (given, made) in enumerate(itertools.pairwise(channels)):
        stored[f"W{i}"] = _random(made, given, 3, 3)
        stride = 2 if i < 3 else 1
        nodes += [
            node("Conv", [last, f"W{i}"], [f"c{i}"], strides=[stride, stride], pads=[1, 1, 1, 1]),
            node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    stored["S"], stored["X"] = _random(1, channels[-1], 1, 1), _random(4, channels[-1], 1, 1)
    nodes += [
        node("Conv", [last, "S"], ["score_map"]),
        node("Sigmoid", ["score_map"], ["score_each"]),
        node("Reshape", ["score_each", "flat"], ["scores"]),
        node("Conv", [last, "X"], ["box_map"]),
        node("Transpose", ["box_map"], ["box_last"], perm=[0, 2, 3, 1]),
        node("Reshape", ["box_last", "fours"], ["places"]),
        node("TopK", ["scores", "k"], ["best", "where"]),
        node("Gather", ["places", "where"], ["best_boxes"]),
        node("Greater", ["best", "enough"], ["good"]),
        node("NonZero", ["good"], ["kept"]),
        node("Reshape", ["kept", "flat"], ["kept_flat"]),
        node("Gather", ["best_boxes", "kept_flat"], ["boxes"]),
        node("Gather", ["best", "kept_flat"], ["box_scores"]),
    ]
    outputs = {"boxes": (FLOAT, ["K", 4]), "box_scores": (FLOAT, ["K"])}
    model = build(nodes, {"image": (FLOAT, [1, 3, 320, 320])}, outputs, stored, 17)
    return model, {"image": np.random.default_rng(0).standard_normal((1, 3, 320, 320), dtype=np.float32)}


def _one_short(made: tuple[onnx.ModelProto, Arrays]) -> tuple[onnx.ModelProto, Arrays]:
    """The same model with one sentence of 16 words."""
    model, inputs = made
    return model, {name: array[:1, :16] for name, array in inputs.items()}


NETWORKS: dict[str, Callable[[], tuple[onnx.ModelProto, Arrays]]] = {
    "transformer encoder, 4 layers of 256, masks and positions computed, tokens [8,64]": masked_encoder,
    "the same, tokens [1,16]": lambda: _one_short(masked_encoder()),
    "LSTM tagger, 2 x 128, words hashed and looked up, [8,64]": tagger,
    "the same, words [1,16]": lambda: _one_short(tagger()),
    "detector, image [1,3,320,320], TopK, NonZero and Gather": detector,
}
"""Makers of (model, inputs), by what they are."""
