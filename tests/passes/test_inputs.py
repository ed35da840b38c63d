"""Inputs rewritten as the sender asks: pixels instead of floats, sizes instead of variable dimensions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.canonical import canonical
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.graphs import copy_of
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.fixed_shapes import with_shapes
from engines.passes.image_input import with_image_input
from engines.reference import Reference
from engines.targets import openvino as target
from tests.engines.zoo import cnn
from tests.passes.answers import operators
from tests.passes.old_operators import body_of
from tests.support.onnx_models import FLOAT, add_sub, build

node = helper.make_node
MEAN, SCALE = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def classifier(kind: int = FLOAT, channels: int | str = 3, batch: int | str = "N") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    numpy_type = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    return build(
        [node("Conv", ["x", "K"], ["c"]), node("Relu", ["c"], ["r"]), node("GlobalAveragePool", ["r"], ["y"])],
        {"x": (kind, [batch, channels, "H", "W"])},
        {"y": (kind, [batch, 4, 1, 1])},
        {"K": rng.standard_normal((4, 3, 3, 3)).astype(numpy_type)},
    )


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


NUMBERS = {
    "one a channel": (MEAN, SCALE),
    "one for all": ((127.5,), (127.5,)),
    "mean alone": (MEAN, (1.0,)),
    "scale alone": ((0.0,), (255.0,)),
    "nothing": ((0.0,), (1.0,)),
}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels_are_answered_as_the_floats_that_they_stand_for(layout: str, numbers: str) -> None:
    mean, scale = NUMBERS[numbers]
    model = classifier()
    after = with_image_input(model, "x", layout, mean, scale)
    onnx.checker.check_model(after, full_check=True)
    image = pixels(2, 7, 8, 3)
    floats = (image.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(scale, np.float32)
    want = Reference(model)({"x": np.ascontiguousarray(floats.transpose(0, 3, 1, 2))})["y"]
    sent = image if layout == "NHWC" else np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(Reference(after)({"x": sent})["y"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    (spec,), _ = tensor_specs(after)
    assert (spec.name, spec.datatype) == ("x", "UINT8")
    assert spec.shape == ((-1, -1, -1, 3) if layout == "NHWC" else (-1, 3, -1, -1))
    assert operators(after)[-3:] == operators(model)
    assert len(operators(after)) == 4 + (layout == "NHWC") + any(mean) + (scale != (1.0,))


def test_the_engine_takes_pixels_in_batches() -> None:
    model = with_image_input(classifier(batch=1), "x", "NHWC", MEAN, SCALE)
    after, changes = canonical(with_batch_axes(model, {"x": 0}))
    assert not any(change.note for change in changes)
    graph = target.read_model(after)
    run = target.runner(target.compile_model(graph, 1, 2), ["y"])
    images = pixels(3, 9, 9, 3)
    want = np.concatenate([Reference(model)({"x": images[i : i + 1]})["y"] for i in range(3)])
    np.testing.assert_allclose(run({"x": images})["y"], want, rtol=1e-4, atol=1e-4)


def test_half_precision_gets_pixels_that_were_normalized_in_full() -> None:
    after = with_image_input(classifier(TensorProto.FLOAT16), "x", "NHWC", MEAN, SCALE)
    assert operators(after)[:5] == ["Cast", "Transpose", "Sub", "Div", "Cast"]
    image = pixels(1, 5, 5, 3)
    floats = ((image - np.float32(MEAN)) / np.float32(SCALE)).astype(np.float16).transpose(0, 3, 1, 2)
    want = Reference(classifier(TensorProto.FLOAT16))({"x": np.ascontiguousarray(floats)})["y"]
    np.testing.assert_array_equal(Reference(after)({"x": image})["y"], want)


def test_bodies_read_the_normalized_values() -> None:
    model = body_of([node("Relu", ["x"], ["b"])], 17)
    after = with_image_input(model, "x", "NHWC", (10.0,), (2.0,))
    image = pixels(2, 4, 4, 1)
    want = Reference(model)({"x": ((image - np.float32(10)) / np.float32(2)).transpose(0, 3, 1, 2).copy()})["y"]
    np.testing.assert_allclose(Reference(after)({"x": image})["y"], want, rtol=1e-6)


def image_that_is_an_output() -> onnx.ModelProto:
    model = classifier()
    model.graph.output.append(model.graph.input[0])
    return model


NO_IMAGES: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, object], str]] = {
    "unknown": (classifier, {"name": "image"}, "the model has no input 'image' to take images; its inputs are 'x'"),
    "integers": (add_sub, {"name": "INPUT0"}, "input 'INPUT0' is INT32 of 2 dimensions; an image input is"),
    "an output": (image_that_is_an_output, {}, "input 'x' is an output too"),
    "means": (classifier, {"mean": (1.0, 2.0)}, "input 'x' has 3 channels; expected 1 or 3 numbers of mean"),
    "scales": (classifier, {"scale": (1.0, 2.0)}, "input 'x' has 3 channels; expected 1 or 3 numbers of scale"),
    "zero": (classifier, {"scale": (0.0,)}, r"the scale of input 'x' is \[0.0\]; expected finite numbers, none 0"),
    "infinite": (classifier, {"mean": (np.inf,)}, r"the mean of input 'x' is \[inf\]"),
    "layout": (classifier, {"layout": "HWC"}, "layout 'HWC' of input 'x' is unknown; expected NHWC or NCHW"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_what_is_no_image_is_refused(case: str) -> None:
    make, asked, words = NO_IMAGES[case]
    with pytest.raises(ModelRefused, match=words):
        with_image_input(make(), **{"name": "x", **asked})  # type: ignore[arg-type]


def test_means_of_images_whose_channels_are_unknown_are_taken() -> None:
    after = with_image_input(classifier(channels="C"), "x", "NHWC", MEAN, SCALE)
    assert Reference(after)({"x": pixels(1, 5, 5, 3)})["y"].shape == (1, 4, 1, 1)


def test_sizes_become_part_of_the_model() -> None:
    model = classifier()
    before = model.SerializeToString()
    after = with_shapes(model, {"x": [3, 32, -1]})
    assert tensor_specs(after)[0][0].shape == (-1, 3, 32, -1)
    assert model.SerializeToString() == before
    fixed = with_shapes(after, {"x": [-1, 32, 16]})
    onnx.checker.check_model(fixed, full_check=True)
    assert tensor_specs(fixed)[0][0].shape == (-1, 3, 32, 16)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 16), dtype=np.float32)
    np.testing.assert_array_equal(Reference(fixed)({"x": x})["y"], Reference(model)({"x": x})["y"])
    with pytest.raises(Exception, match="dimensions"):
        Reference(fixed)({"x": x[:, :, :, :8].copy()})


def two_inputs() -> onnx.ModelProto:
    table = (FLOAT, ["N", "T", 4])
    return build([node("Add", ["a", "b"], ["y"])], {"a": table, "b": table}, {"y": table})


def variable_cnn() -> onnx.ModelProto:
    """A CNN that says it takes any size, and takes 8 x 8 alone: its last product has a fixed width."""
    model = copy_of(cnn())
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    return model


MISFITS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, list[int]], str]] = {
    "unknown input": (classifier, {"z": [1]}, "a shape is given for 'z', which is no input; inputs are 'x'"),
    "rank": (classifier, {"x": [1, 3, 32, 32]}, "has 4 sizes; expected 3: the first dimension carries the rows"),
    "fixed": (classifier, {"x": [4, 32, 32]}, r"input 'x' has shape \[-1, 3, -1, -1\]; it cannot become \[4, 32, 32\]"),
    "zero": (classifier, {"x": [3, 0, 32]}, "has 0 in it; expected 1 or more, or -1"),
    "too small for the layers": (variable_cnn, {"x": [1, 12, 12]}, "cannot take inputs of shape 'x'"),
    "not each other's": (two_inputs, {"a": [5, 4], "b": [6, 4]}, "cannot take inputs of shape 'a' .*'b'"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_sizes_that_do_not_fit_are_refused_by_name(case: str) -> None:
    make, shapes, words = MISFITS[case]
    with pytest.raises(ModelRefused, match=words):
        with_shapes(make(), shapes)


def test_sizes_that_fit_are_taken() -> None:
    assert tensor_specs(with_shapes(variable_cnn(), {"x": [1, 8, 8]}))[0][0].shape == (-1, 1, 8, 8)
    assert [spec.shape for spec in tensor_specs(with_shapes(two_inputs(), {"a": [5, -1]}))[0]] == [
        (-1, 5, 4),
        (-1, -1, 4),
    ]
