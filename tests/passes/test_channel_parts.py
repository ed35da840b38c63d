"""The parts of channel pruning and of the correction: measured effects against the plain sum, regression, walking."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.passes.calm_softmax import with_outputs
from engines.passes.channel_effects import measured_effects
from engines.passes.channel_groups import find_groups
from engines.passes.channel_merge import Together
from engines.passes.layerwise import Walk
from engines.reference import Arrays, Reference
from tests.passes.networks import encoder, recurrent
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def reading(**attributes: object) -> onnx.ModelProto:
    """x [N, 3, 9, 8] -> Conv of 6 -> Relu -> `last`, a Conv of 4 with these attributes."""
    stored = {"W": normal(6, 3, 1, 1), "b": normal(6), "V": normal(4, 6, 3, 2)}
    nodes = [
        node("Conv", ["x", "W", "b"], ["h"], name="first"),
        node("Relu", ["h"], ["r"], name="relu"),
        node("Conv", ["r", "V"], ["y"], name="last", **attributes),
    ]
    return build(nodes, {"x": (FLOAT, ["N", 3, 9, 8])}, {"y": (FLOAT, [None] * 4)}, stored, 21)


def with_one_channel(model: onnx.ModelProto, channel: int) -> onnx.ModelProto:
    """`last` reads this channel alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == "V")
    weights = np.zeros_like(numpy_helper.to_array(tensor))
    weights[:, channel] = numpy_helper.to_array(tensor)[:, channel]
    tensor.CopyFrom(numpy_helper.from_array(weights, "V"))
    return copy


@pytest.mark.parametrize(
    "model",
    [
        reading(),
        reading(pads=[1, 0, 2, 1]),
        reading(strides=[2, 3], dilations=[2, 1], pads=[0, 1, 1, 0]),
        reading(auto_pad="SAME_UPPER", strides=[2, 2]),
        reading(auto_pad="SAME_LOWER", strides=[2, 1]),
        reading(auto_pad="VALID"),
    ],
    ids=["plain", "pads", "strides and dilations", "same upper", "same lower", "valid"],
)
def test_effects_are_the_variance_of_what_a_channel_gives(model: onnx.ModelProto) -> None:
    """Against the runtime: the layer's own output where all other channels are 0."""
    samples: list[Arrays] = [{"x": normal(2, 3, 9, 8)} for _ in range(3)]
    groups = [group for group in find_groups(model) if not group.closed]
    measured = measured_effects(model, groups, samples)
    assert measured is not None
    lost = []
    for channel in range(6):
        run = Reference(with_one_channel(model, channel))
        given = np.concatenate([run(sample)["y"] for sample in samples])
        lost.append(given.var(axis=(0, 2, 3), dtype=np.float64).sum())
    np.testing.assert_allclose(measured.effects[0], np.array(lost) / sum(lost), rtol=1e-3)


def test_kept_channels_stand_in_for_those_that_go_with_them() -> None:
    source = normal(3, 4000)
    rows = np.concatenate([source, normal(2, 3) @ source + 5 + np.float32(0.01) * normal(2, 4000)])
    weights, kept = normal(5, 7).astype(np.float64), np.array([0, 1, 2])
    together = Together(5)
    for part in np.split(rows, 4, axis=1):
        together.add(part)
    merged = together.merged(weights, kept)
    centred = rows - rows.mean(axis=1, keepdims=True)
    whole = weights.T @ centred
    left, missing = merged[kept].T @ centred[kept] - whole, weights[kept].T @ centred[kept] - whole
    assert left.var() < 1e-3 * missing.var()
    np.testing.assert_array_equal(together.merged(weights, np.arange(5)), weights)


def test_channels_that_do_not_go_together_stay_apart() -> None:
    together = Together(4)
    together.add(np.concatenate([normal(3, 4000), np.zeros((1, 4000), np.float32)]))
    weights = normal(4, 2).astype(np.float64)
    np.testing.assert_array_equal(together.merged(weights, np.array([0, 1, 2]))[:3], weights[:3])


@pytest.mark.parametrize("model", [encoder(opset=18), recurrent("GRU", opset=14)], ids=["encoder", "GRU"])
def test_a_walk_shows_what_one_run_shows(model: onnx.ModelProto) -> None:
    """Every value that a node makes, whatever branches there are."""
    names = [name for one in model.graph.node for name in one.output]
    is_encoder = "E" in {tensor.name for tensor in model.graph.initializer}
    samples = [{"x": RNG.integers(0, 50, (2, size)) if is_encoder else normal(size, 2, 3)} for size in (3, 6)]
    whole = Reference(with_outputs(model, names))
    seen: dict[str, list[np.ndarray]] = {}

    def see(name: str, arrays: list[np.ndarray]) -> None:
        seen[name] = arrays

    assert Walk(model, names)(samples, see) > 0
    assert set(seen) == set(names)
    for i, sample in enumerate(samples):
        want = whole(sample)
        for name in names:
            np.testing.assert_array_equal(seen[name][i], want[name], err_msg=name)


def test_what_is_changed_on_the_way_is_what_comes_after_it() -> None:
    model = reading()
    sample = {"x": normal(1, 3, 9, 8)}
    seen: dict[str, np.ndarray] = {}

    def see(name: str, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        seen[name] = arrays[0]
        return (np.float32(0) * arrays[0][:1], np.float32(2)) if name == "h" else None

    Walk(model, ["h", "r", "y"])([sample], see)
    assert np.ptp(seen["h"]) > 0
    np.testing.assert_array_equal(seen["r"], np.full_like(seen["h"], 2))
    assert np.ptp(seen["y"], axis=(2, 3)).max() < 1e-4
