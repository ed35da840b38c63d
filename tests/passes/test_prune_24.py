"""2:4 pruning: two zeros in every four weights, corrected biases, and what it does to accuracy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.canonical import canonical
from engines.graphs import copy_of
from engines.legality import Verifier
from engines.passes.calm_softmax import with_outputs
from engines.passes.prune_24 import prune_24
from engines.passes.weighted import weighted_layers
from engines.reference import Arrays, Reference
from tests.passes.answers import operators, rows_of
from tests.passes.networks import encoder, light, recurrent
from tests.passes.samples import Task, accuracy_percent, task
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
RNG = np.random.default_rng(0)
LOST_POINTS = {"fashion_cnn": 3.0, "letter_mlp": 6.0, "japanese_vowels": 3.0}
"""Most points of accuracy that may be lost to half of the weights."""


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def most_kept_of_four(model: onnx.ModelProto, name: str) -> int:
    """Non-zero weights in the fullest group of four of the layer, counted with loops over plain indices."""
    layer = next(one for one in weighted_layers(model.graph) if one.node.name == name)
    weights = arrays(model)[layer.weights]
    rows = weights if layer.node.op_type == "Conv" or layer.in_axis == 1 else weights.T  # [out, in, ...]
    return max(
        int(np.count_nonzero(rows[k, c : c + 4, *place]))
        for k in range(rows.shape[0])
        for c in range(0, rows.shape[1], 4)
        for place in np.ndindex(rows.shape[2:])
    )


def layered(op_type: str = "Conv", *, bias: bool = True) -> onnx.ModelProto:
    """x [N, 8, 6, 6] or [N, 8] -> first -> Relu -> second -> y."""
    conv = op_type == "Conv"
    window = (3, 3) if conv else ()
    stored = {f"W{i}": normal(*((16, 8 * i, *window) if conv else (8 * i, 16))) for i in (1, 2)}
    how = {"pads": [1, 1, 1, 1]} if conv else {}
    if bias:
        stored["b"] = normal(16)
    nodes = [
        node(op_type, ["x", "W1", *(["b"] if bias else [])], ["h"], name="first", **how),
        node("Relu", ["h"], ["r"], name="relu"),
        node(op_type, ["r", "W2", *(["b"] if bias else [])], ["y"], name="second", **how),
    ]
    place: list[int | str] = [6, 6] if conv else []
    return build(nodes, {"x": (FLOAT, ["N", 8, *place])}, {"y": (FLOAT, ["N", 16, *place])}, stored, 21)


def drawn(model: onnx.ModelProto, count: int = 48) -> list[Arrays]:
    """Inputs of mean 1, so that weights that are gone are missed in the mean."""
    dims = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(dims, dtype=np.float32) + 1} for _ in range(count)]


def distance(model: onnx.ModelProto, pruned: onnx.ModelProto, rows: list[Arrays]) -> float:
    """Root of the mean squared difference of all outputs, over the deviation of the model's own."""
    was, now = Reference(model), Reference(pruned)
    name = model.graph.output[0].name
    want = np.stack([was(row)[name] for row in rows])
    got = np.stack([now(row)[name] for row in rows])
    return float(np.sqrt(((want - got) ** 2).mean()) / want.std())


MODELS = {
    "Conv": layered("Conv"),
    "Conv without bias": layered("Conv", bias=False),
    "Gemm": layered("Gemm"),
    "Gemm without bias": layered("Gemm", bias=False),
    "MatMul": layered("MatMul", bias=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_two_zeros_in_every_four_and_means_and_deviations_are_kept(name: str) -> None:
    model = MODELS[name]
    before = model.SerializeToString()
    samples = drawn(model)
    pruned, note = prune_24(model, iter(samples))
    assert model.SerializeToString() == before
    assert prune_24(model, samples)[0] == pruned  # deterministic, and samples are read once
    assert note == "2 layers are pruned"
    for layer in ("first", "second"):
        assert most_kept_of_four(model, layer) == 4
        assert most_kept_of_four(pruned, layer) == 2
    Verifier(model, Reference(model)).verify_form("prune", model, pruned)
    bare, _ = prune_24(model, [])
    want, got, plain = (statistics(one, "y", samples) for one in (model, pruned, bare))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)
    assert np.abs(got[1] - want[1]).mean() < 0.2 * np.abs(plain[1] - want[1]).mean()  # factors end at 2
    rows = drawn(model, 96)[48:]
    assert distance(model, pruned, rows) < distance(model, bare, rows)


def statistics(model: onnx.ModelProto, name: str, samples: list[Arrays]) -> np.ndarray:
    """Mean and deviation of each channel."""
    run = Reference(with_outputs(model, [name]))
    values = np.concatenate([run(sample)[name] for sample in samples])
    others = tuple(axis for axis in range(values.ndim) if axis != 1)
    return np.stack([values.mean(axis=others), values.std(axis=others)])


def test_the_smallest_go_and_the_others_stay() -> None:
    stored = {"W": np.array([[3, -1, 2, 0.5, 0, 0, 0, 7], [1, 1, 1, 1, -4, 3, 2, -1]], np.float32)}
    nodes = [node("Gemm", ["x", "W"], ["y"], name="one", transB=1)]
    model = build(nodes, {"x": (FLOAT, ["N", 8])}, {"y": (FLOAT, ["N", 2])}, stored, 21)
    pruned, note = prune_24(model, [])
    assert note == "1 layer is pruned; biases are not corrected: there are no samples"
    expected = [[3, 0, 2, 0, 0, 0, 0, 7], [0, 0, 1, 1, -4, 3, 0, 0]]
    np.testing.assert_array_equal(arrays(pruned)["W"], np.array(expected, np.float32))
    again, note = prune_24(pruned, [])
    assert again is pruned
    assert note == "nothing is pruned"


def unfit() -> onnx.ModelProto:
    """Three colours, a depthwise layer, 6 channels, weights that are an output or read elsewhere, a transposed one."""
    stored = {
        "colours": normal(8, 3, 3, 3), "deep": normal(8, 1, 3, 3), "six": normal(6, 8, 1, 1),
        "after_six": normal(8, 6, 1, 1), "given": normal(8, 8, 1, 1), "read": normal(8, 8, 1, 1),
        "up": normal(8, 4, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "colours"], ["a"], name="a"),
        node("Conv", ["a", "deep"], ["b"], name="b", group=8),
        node("Conv", ["b", "six"], ["c"], name="c"),
        node("Conv", ["c", "after_six"], ["d"], name="d"),
        node("Conv", ["d", "given"], ["e"], name="e"),
        node("Conv", ["e", "read"], ["f"], name="f"),
        node("Add", ["f", "read"], ["g"], name="g"),
        node("ConvTranspose", ["g", "up"], ["y"], name="h"),
    ]
    model = build(nodes, {"x": (FLOAT, ["N", 3, 12, 12])}, {"y": (FLOAT, [None] * 4)}, stored, 21)
    model.graph.output.append(helper.make_tensor_value_info("given", FLOAT, [8, 8, 1, 1]))
    return model


def test_what_does_not_fit_is_left_and_named() -> None:
    model = unfit()
    pruned, note = prune_24(model, [])
    was, now = arrays(model), arrays(pruned)
    assert {name for name in was if not np.array_equal(was[name], now[name])} == {"six"}
    assert note.split("; ")[2:] == [
        "a is left: its reduction is over 3 channels, no multiple of 4",
        "b is left: it is depthwise",
        "d is left: its reduction is over 6 channels, no multiple of 4",
        "e is left: given is an output",
        "f is left: read is read by other nodes too",
        "h is left: 2:4 sparsity is not for its weights (ConvTranspose)",
    ]


def test_shared_weights_are_pruned_once_and_biases_corrected_apart() -> None:
    model = copy_of(MODELS["Gemm"])
    for one, width in ((0, 16), (2, 16)):
        model.graph.node[one].input[1], model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = "W2", width
    samples = drawn(model)
    pruned, _ = prune_24(model, samples)
    assert pruned.graph.node[0].input[1] == pruned.graph.node[2].input[1] == "W2"
    assert pruned.graph.node[0].input[2] != pruned.graph.node[2].input[2]
    assert most_kept_of_four(pruned, "first") == 2
    kept = arrays(pruned)["W2"] != 0
    np.testing.assert_array_equal(arrays(pruned)["W2"][kept], arrays(model)["W2"][kept])
    for value in ("h", "y"):
        want, got = (statistics(one, value, samples) for one in (model, pruned))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)


def test_a_bias_that_is_computed_or_added_behind() -> None:
    computed = copy_of(MODELS["Gemm"])
    computed.graph.node.insert(0, node("Abs", ["b"], ["c"], name="abs"))
    computed.graph.node[1].input[2] = computed.graph.node[3].input[2] = "c"
    added = copy_of(MODELS["MatMul"])
    added.graph.initializer.append(numpy_helper.from_array(normal(16), "behind"))
    added.graph.node[0].output[0] = "p"
    added.graph.node.insert(1, node("Add", ["behind", "p"], ["h"], name="add"))
    for model, adds in ((computed, 2), (added, 2)):
        samples = drawn(model)
        pruned, _ = prune_24(model, samples)
        assert operators(pruned).count("Add") == adds
        assert [value.name for value in pruned.graph.output] == ["y"]
        want, got = (statistics(one, "y", samples) for one in (model, pruned))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "squeezenet", "shufflenet"])
def test_networks_come_out_valid(name: str) -> None:
    model, _ = canonical(light(name))
    samples = rows_of(model)
    pruned, _ = prune_24(model, samples[:1])
    Verifier(model, Reference(model)).verify_form("prune", model, pruned)
    onnx.checker.check_model(pruned, full_check=True)
    fits = [one for one in weighted_layers(pruned.graph) if one.shape[one.in_axis] % 4 == 0]
    assert len(fits) >= 10
    for one in fits[:: len(fits) // 4]:
        assert most_kept_of_four(pruned, one.node.name) == 2
    assert np.isfinite(next(iter(Reference(pruned)(samples[1]).values()))).all()


@pytest.mark.parametrize("model", [encoder(), recurrent("LSTM")], ids=["encoder", "LSTM"])
def test_other_networks(model: onnx.ModelProto) -> None:
    model, _ = canonical(model)
    rng = np.random.default_rng(0)
    is_encoder = "LSTM" not in operators(model)
    x = rng.integers(0, 50, (2, 7)) if is_encoder else rng.standard_normal((7, 2, 3), dtype=np.float32)
    pruned, note = prune_24(model, [{"x": x}])
    if is_encoder:
        assert note == "12 layers are pruned"
        assert all(most_kept_of_four(pruned, one.node.name) == 2 for one in weighted_layers(pruned.graph))
    else:
        assert pruned is model
        assert note.startswith("nothing is pruned; LSTM_0 is left: 2:4 sparsity is not for its weights (LSTM)")


@pytest.mark.parametrize("name", LOST_POINTS)
def test_accuracy_of_the_sample_models(name: str) -> None:
    given: Task = task(name)
    pruned, note = prune_24(given.model, given.calibration)
    bare, _ = prune_24(given.model, [])
    was, now, uncorrected = (accuracy_percent(one, given.rows, given.labels) for one in (given.model, pruned, bare))
    assert was - now <= LOST_POINTS[name], f"{was:.2f} % became {now:.2f} %, {uncorrected:.2f} % uncorrected ({note})"
    assert now >= uncorrected
