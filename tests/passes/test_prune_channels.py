"""Whole filters removed: which go, through what they are followed, what is left of accuracy and work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.canonical import canonical
from engines.legality import Verifier
from engines.passes.channel_groups import find_groups
from engines.passes.names import name_nodes
from engines.passes.prune_channels import prune_channels
from engines.reference import Arrays, Reference
from tests.passes.answers import assert_same_answers, operators, rows_of
from tests.passes.networks import light, recurrent
from tests.passes.samples import accuracy_percent, multiply_adds, task
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
RNG = np.random.default_rng(0)
DEAD = (1, 4, 6)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def dims(model: onnx.ModelProto, name: str) -> list[int]:
    return list(arrays(model)[name].shape)


def without_dead(array: np.ndarray, axis: int = 0, span: int = 1) -> np.ndarray:
    gone = [c * span + i for c in DEAD for i in range(span)]
    return np.delete(array, gone, axis=axis)


def planted(
    between: list[onnx.NodeProto], stored: dict[str, np.ndarray], last: str = "Conv", width: int = 8
) -> onnx.ModelProto:
    """x [N, 4, 9, 9] -> Conv `first` of 8 filters, three of them zero -> `h` .. `between` .. `r` -> `last` -> y."""
    weights, bias = normal(8, 4, 3, 3), normal(8)
    weights[list(DEAD)], bias[list(DEAD)] = 0, 0
    layer = {
        "Conv": node("Conv", ["r", "V", "c"], ["y"], name="last", pads=[1, 1, 1, 1]),
        "Gemm": node("Gemm", ["r", "V", "c"], ["y"], name="last", transB=1),
        "MatMul": node("MatMul", ["r", "V"], ["y"], name="last"),
    }[last]
    shapes = {"Conv": (5, 8, 3, 3), "Gemm": (5, width), "MatMul": (width, 5)}
    own = {"W": weights, "b": bias, "V": normal(*shapes[last]), **({} if last == "MatMul" else {"c": normal(5)})}
    return build(
        [node("Conv", ["x", "W", "b"], ["h"], name="first", strides=[2, 2]), *between, layer],
        {"x": (FLOAT, ["N", 4, 9, 9])},
        {"y": (FLOAT, [None] * (4 if last == "Conv" else 2))},
        {**own, **stored},
        21,
    )


def gate() -> onnx.ModelProto:
    """Scaled by what its own means say (squeeze and excitation, without its layers)."""
    return planted(
        [node("GlobalAveragePool", ["h"], ["m"]), node("Sigmoid", ["m"], ["s"]), node("Mul", ["h", "s"], ["r"])], {}
    )


def depthwise() -> onnx.ModelProto:
    bias = normal(8)
    bias[list(DEAD)] = 0
    return planted(
        [node("Conv", ["h", "D", "d"], ["k"], name="deep", group=8, pads=[1, 1, 1, 1]), node("Relu", ["k"], ["r"])],
        {"D": normal(8, 1, 3, 3), "d": bias},
    )


def normalized() -> onnx.ModelProto:
    stored = {"g": normal(8), "m": normal(8), "v": np.abs(normal(8)), "o": np.ones(8, np.float32)}
    stored["o"][list(DEAD)] = 0
    stored["m"][list(DEAD)] = 0
    return planted([node("BatchNormalization", ["h", "g", "o", "m", "v"], ["r"], name="norm")], stored)


FOLLOWED: dict[str, tuple[onnx.ModelProto, dict[str, list[int]]]] = {
    "Relu": (planted([node("Relu", ["h"], ["r"])], {}), {"V": [5, 5, 3, 3]}),
    "Clip, Dropout, Identity": (
        planted(
            [node("Clip", ["h", "low", "high"], ["i"]), node("Identity", ["i"], ["d"]), node("Dropout", ["d"], ["r"])],
            {"low": np.float32(-1), "high": np.float32(6)},
        ),
        {"low": []},
    ),
    "PRelu": (planted([node("PRelu", ["h", "slope"], ["r"])], {"slope": normal(8, 1, 1)}), {"slope": [5, 1, 1]}),
    "constants": (
        planted(
            [node("Mul", ["scale", "h"], ["i"]), node("Mul", ["i", "all"], ["r"])],
            {"scale": normal(1, 8, 1, 1), "all": normal(1, 1)},
        ),
        {"scale": [1, 5, 1, 1], "all": [1, 1]},
    ),
    "pools and Pad": (
        planted(
            [node("MaxPool", ["h"], ["i"], kernel_shape=[2, 2]), node("Pad", ["i", "pads"], ["r"])],
            {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        ),
        {"V": [5, 5, 3, 3]},
    ),
    "Resize": (
        planted(
            [node("Resize", ["h", "", "scales"], ["r"], mode="nearest")],
            {"scales": np.array([1, 1, 2, 2], np.float32)},
        ),
        {"scales": [4]},
    ),
    "swish": (planted([node("Sigmoid", ["h"], ["s"]), node("Mul", ["h", "s"], ["r"])], {}), {"V": [5, 5, 3, 3]}),
    "gate": (gate(), {"V": [5, 5, 3, 3]}),
    "depthwise": (depthwise(), {"D": [5, 1, 3, 3], "d": [5]}),
    "BatchNormalization": (normalized(), {"g": [5], "v": [5]}),
    "Flatten": (
        planted([node("Relu", ["h"], ["i"]), node("Flatten", ["i"], ["r"])], {}, "Gemm", 8 * 16),
        {"V": [5, 5 * 16]},
    ),
    "Reshape": (
        planted([node("Reshape", ["h", "to"], ["r"])], {"to": np.array([-1, 8 * 16])}, "MatMul", 8 * 16),
        {"V": [5 * 16, 5], "to": [2]},
    ),
    "mean": (
        planted([node("ReduceMean", ["h", "axes"], ["r"], keepdims=0)], {"axes": np.array([2, -1])}, "Gemm"),
        {"V": [5, 5]},
    ),
    "Squeeze": (
        planted(
            [node("GlobalMaxPool", ["h"], ["i"]), node("Squeeze", ["i", "axes"], ["r"])],
            {"axes": np.array([3, 2])},
            "MatMul",
        ),
        {"V": [5, 5]},
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_dead_filters_go_exactly_and_the_answers_stay(name: str) -> None:
    plain, sizes = FOLLOWED[name]
    model, _ = name_nodes(plain)
    before, samples = model.SerializeToString(), rows_of(model, 3, count=8)
    pruned, note = prune_channels(model, iter(samples), len(DEAD) / 8)
    assert model.SerializeToString() == before
    assert prune_channels(model, samples, len(DEAD) / 8)[0] == pruned
    assert note.startswith("3 of 8 filters are removed: first keeps 5 of 8; last is left: ")
    np.testing.assert_array_equal(arrays(pruned)["W"], without_dead(arrays(model)["W"]))
    for tensor, expected in {"W": [5, 4, 3, 3], "b": [5], **sizes}.items():
        assert dims(pruned, tensor) == expected
    Verifier(model, Reference(model)).verify_form("prune", model, pruned)
    assert_same_answers(model, pruned, rows=samples[:2])
    assert multiply_adds(pruned, 2) < multiply_adds(model, 2)


def test_a_constant_filter_goes_into_the_bias() -> None:
    """It varies nowhere, whatever its size; a layer without padding loses nothing with it."""
    model, _ = FOLLOWED["Flatten"]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    bias = next(tensor for tensor in changed.graph.initializer if tensor.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, 50, np.float32), "b"))
    samples = rows_of(changed, 3, count=8)
    pruned, _ = prune_channels(changed, samples, len(DEAD) / 8)
    np.testing.assert_array_equal(arrays(pruned)["W"], without_dead(arrays(changed)["W"]))
    assert_same_answers(changed, pruned, rows=samples[:2])


def joined() -> onnx.ModelProto:
    """A residual network: stem, and `inner` -> `outer` added to it; a head reads the sum. DEAD are so in both."""
    stored = {
        "W": normal(8, 4, 3, 3),
        "I": normal(6, 8, 3, 3),
        "O": normal(8, 6, 3, 3),
        "H": normal(3, 8, 1, 1),
    }
    stored["W"][list(DEAD)] = 0
    stored["O"][list(DEAD)] = 0
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "W"], ["t"], name="stem", **same),
        node("Conv", ["t", "I"], ["i"], name="inner", **same),
        node("Relu", ["i"], ["j"]),
        node("Conv", ["j", "O"], ["o"], name="outer", **same),
        node("Add", ["t", "o"], ["s"]),
        node("Relu", ["s"], ["r"]),
        node("Conv", ["r", "H"], ["y"], name="head"),
    ]
    return build(nodes, {"x": (FLOAT, ["N", 4, 7, 7])}, {"y": (FLOAT, ["N", 3, 7, 7])}, stored, 21)


def test_layers_joined_by_an_addition_lose_the_same_filters() -> None:
    model, _ = canonical(joined())
    samples = rows_of(model, 3, count=8)
    pruned, note = prune_channels(model, samples, 3 / 14)
    assert note.startswith("3 of 14 filters are removed: stem and outer keep 5 of 8; ")
    found = arrays(pruned)
    np.testing.assert_array_equal(found["W"], without_dead(arrays(model)["W"]))
    assert [list(found[name].shape) for name in "IOH"] == [[6, 5, 3, 3], [5, 6, 3, 3], [3, 5, 1, 1]]
    assert_same_answers(model, pruned, rows=samples[:2])


def opened() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(planted([node("Relu", ["h"], ["r"])], {}))
    model.graph.output.append(helper.make_tensor_value_info("r", FLOAT, [None] * 4))
    return model


def with_input_added() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(planted([node("Add", ["h", "h"], ["r"], name="add")], {}))
    model.graph.input.append(helper.make_tensor_value_info("z", FLOAT, ["N", 8, 4, 4]))
    model.graph.node[1].input[1] = "z"
    return model


CLOSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "its channels are in output 'r'": opened,
    "it is not followed through Add 'add'": with_input_added,
    "it is not followed through Softmax 'soft'": lambda: planted(
        [node("Softmax", ["h"], ["r"], name="soft", axis=1)], {}
    ),
    "it is not followed through Concat 'two'": lambda: planted(
        [node("Concat", ["h", "h"], ["d"], name="two", axis=1), node("Slice", ["d", "low", "high", "axis"], ["r"])],
        {"low": np.array([4]), "high": np.array([12]), "axis": np.array([1])},
    ),
    "it is not followed into Conv 'grouped'": lambda: planted(
        [node("Conv", ["h", "half"], ["r"], name="grouped", group=2)], {"half": normal(8, 4, 1, 1)}
    ),
    "it is not followed through LRN 'across'": lambda: planted([node("LRN", ["h"], ["r"], name="across", size=3)], {}),
}  # fmt: skip


@pytest.mark.parametrize("reason", CLOSED)
def test_what_cannot_be_followed_is_left_and_explained(reason: str) -> None:
    model = CLOSED[reason]()
    pruned, note = prune_channels(model, rows_of(model), 0.5)
    assert pruned is model
    assert note.startswith("no filter is removed; first is left: ")
    assert reason in note


def test_a_share_and_samples_are_needed_and_some_filters_stay() -> None:
    model, _ = FOLLOWED["Relu"]
    with pytest.raises(ValueError, match="share of filters to remove is 1; expected at least 0 and less than 1"):
        prune_channels(model, [], 1)
    assert prune_channels(model, rows_of(model), 0.0)[0] is model
    pruned, note = prune_channels(model, [], 0.5)
    assert pruned is model
    assert note == "no filter is removed: there are no samples to measure effects on"
    least, _ = prune_channels(model, rows_of(model), 0.99)
    assert dims(least, "W") == [4, 4, 3, 3]


def test_kept_in_multiples() -> None:
    """Of three dead filters and a live one two can go: dead ones do, and the answers stay."""
    model, _ = FOLLOWED["Relu"]
    samples = rows_of(model, 3, count=8)
    pruned, note = prune_channels(model, samples, 0.5, multiple=3)
    assert_same_answers(model, pruned, rows=samples[:2])
    assert note.startswith("2 of 8 filters are removed: first keeps 6 of 8; ")
    same, note = prune_channels(model, samples, 0.5, multiple=8)
    assert same is model
    assert note.startswith("no filter is removed; last is left")
    with pytest.raises(ValueError, match="multiples of 0; expected at least 1"):
        prune_channels(model, samples, 0.5, multiple=0)


@pytest.mark.parametrize("name", ["bvlc_alexnet", "inception_v1", "resnet50", "squeezenet"])
def test_networks_come_out_valid_and_smaller(name: str) -> None:
    model, _ = canonical(light(name))
    samples = rows_of(model)
    pruned, note = prune_channels(model, samples[:1], 0.2)
    assert " filters are removed: " in note
    Verifier(model, Reference(model)).verify_form("prune", model, pruned)
    onnx.checker.check_model(pruned, full_check=True)
    assert pruned.ByteSize() < model.ByteSize()
    assert operators(pruned) == operators(model)
    assert np.isfinite(next(iter(Reference(pruned)(samples[1]).values()))).all()


def test_every_layer_of_a_residual_network_has_a_group() -> None:
    groups = find_groups(canonical(light("resnet50"))[0])
    assert [len(group.makers) for group in groups if len(group.makers) > 1] == [4, 5, 7, 4]
    assert [group.closed for group in groups if group.closed] != []


def test_a_network_of_grouped_convolutions_is_left() -> None:
    model, _ = canonical(light("shufflenet"))
    pruned, note = prune_channels(model, rows_of(model), 0.2)
    assert pruned is model
    assert note.startswith("no filter is removed; n0 is left: it is not followed into Conv 'n4'")


def test_a_recurrent_network_has_nothing_to_remove() -> None:
    model, _ = canonical(recurrent("GRU"))
    rows: list[Arrays] = [{"x": np.zeros((4, 1, 3), np.float32)}]
    assert prune_channels(model, rows, 0.5) == (model, "no filter is removed")


@pytest.mark.parametrize(
    ("name", "share", "points", "work"), [("fashion_cnn", 0.2, 1.0, 0.8), ("letter_mlp", 0.2, 2.0, 0.8)]
)
def test_accuracy_of_the_sample_models(name: str, share: float, points: float, work: float) -> None:
    given = task(name)
    pruned, note = prune_channels(given.model, given.calibration, share)
    was, now = (accuracy_percent(one, given.rows, given.labels) for one in (given.model, pruned))
    assert was - now <= points, f"{was:.2f} % became {now:.2f} % ({note})"
    assert multiply_adds(pruned) <= work * multiply_adds(given.model)
    assert pruned.ByteSize() <= work * given.model.ByteSize()


def test_the_vowels_have_no_filters() -> None:
    given = task("japanese_vowels")
    pruned, note = prune_channels(given.model, given.calibration, 0.2)
    assert pruned is given.model
    assert note.startswith("no filter is removed")
