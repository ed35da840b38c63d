"""What may be asked, the same for the service (pydantic) and for the child (msgspec)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from engines.errors import ModelRefused
from engines.inputs import as_model_inputs, declared_inputs
from engines.spec import ImageInput, Spec, decode_spec, encode_spec, require_supported, require_truth
from engines.tensor import TensorSpec

SERVICE = TypeAdapter(Spec)
WHOLE = {
    "precision": "fp32",
    "metric": "top1",
    "accuracy_budget": 0.01,
    "objective": "latency",
    "search": "grid",
    "trials": 20,
    "time_limit_s": 30,
    "seed": 1,
    "calibrator": "mse",
    "targets": ["tensorrt", "openvino"],
    "max_batch": 8,
    "shapes": {"x": [3, -1, 224]},
    "inputs": {"x": {"layout": "NCHW", "mean": [1, 2, 3], "scale": [0.5]}},
}


@pytest.mark.parametrize("given", [{}, WHOLE, {"metric": "mae", "accuracy_budget": 0}, {"inputs": {"x": {}}}])
def test_both_readers_make_the_same_of_it_and_it_comes_back(given: dict[str, Any]) -> None:
    data = json.dumps(given).encode()
    spec = decode_spec(data)
    assert spec == SERVICE.validate_json(data)
    assert decode_spec(encode_spec(spec)) == spec


def test_equal_specs_have_equal_bytes() -> None:
    one = decode_spec(b'{"metric":"mae","accuracy_budget":1,"shapes":{"a":[2],"b":[3]},"inputs":{"x":{"mean":[-0.0]}}}')
    other = SERVICE.validate_json(
        '{"inputs":{"x":{"mean":[0]}},"shapes":{"b":[3],"a":[2]},"accuracy_budget":1.0,"metric":"mae"}'
    )
    made = Spec(metric="mae", accuracy_budget=1, shapes={"b": (3,), "a": (2,)}, inputs={"x": ImageInput(mean=(0,))})
    assert encode_spec(one) == encode_spec(other) == encode_spec(made)
    assert encode_spec(one) != encode_spec(Spec())


@pytest.mark.parametrize(
    "given",
    [
        {"precison": "fp32"}, {"inputs": {"x": {"layot": "NHWC"}}}, {"precision": "fp8"}, {"metric": "auc"},
        {"trials": 0}, {"time_limit_s": 0}, {"search": "luck"},
        {"metric": "top1", "accuracy_budget": -0.1}, {"max_batch": 0}, {"max_batch": "8"},
        {"max_batch": True}, {"max_batch": 10**9}, {"targets": []}, {"targets": ["openvino", "openvino"]},
        {"shapes": {"x": [0]}}, {"shapes": {"x": [2**40]}}, {"inputs": {"x": {"scale": [0]}}},
        {"inputs": {"x": {"mean": []}}}, {"inputs": {"x": {"mean": [1, 2, 3], "scale": [1, 2]}}}, [], "fp32", None,
        {"accuracy_budget": "0.1", "metric": "top1"}, {"inputs": []},
    ],
)  # fmt: skip
def test_both_readers_refuse_what_is_no_spec(given: Any) -> None:
    data = json.dumps(given).encode()
    with pytest.raises(ModelRefused):
        decode_spec(data)
    with pytest.raises(ValidationError):
        SERVICE.validate_json(data)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b'{"metric":"mae","accuracy_budget":1e999}', b"\xff"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(ModelRefused, match="the spec cannot be read"):
        decode_spec(data)


def test_an_unknown_key_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(ModelRefused, match="unknown key 'precison'; did you mean 'precision'"):
        decode_spec(b'{"precison": "fp32"}')
    with pytest.raises(ModelRefused, match=r"unknown key 'inputs\.x\.zzz'; expected one of datatype, layout"):
        decode_spec(b'{"inputs": {"x": {"zzz": 1}}}')


@pytest.mark.parametrize(
    ("spec", "truth", "named"),
    [
        (Spec(precision="binary"), None, "precision 'binary' is not built yet"),
        (Spec(metric="mae", accuracy_budget=0.1), None, "accuracy_budget needs samples to judge by"),
        (Spec(metric="top1"), None, "metric 'top1' needs a validation set with 'labels'"),
        (Spec(metric="top1"), "targets", "metric 'top1' needs a validation set with 'labels'"),
        (Spec(metric="rmse"), "labels", "metric 'rmse' compares values"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(spec: Spec, truth: Any, named: str) -> None:
    def require() -> None:
        require_supported(spec)
        require_truth(spec, truth, has_samples=truth is not None)

    with pytest.raises(ModelRefused, match=named):
        require()


def test_what_is_built_is_supported() -> None:
    require_supported(Spec())
    require_supported(Spec(precision="fp32", metric="cosine", objective="size"))
    require_truth(Spec(metric="top5", accuracy_budget=0.0), "labels")


IMAGE = TensorSpec("x", "FP32", (-1, 3, -1, 4))
OTHER = TensorSpec("y", "INT64", (1, 7))


def test_declared_inputs_are_what_clients_send() -> None:
    spec = Spec(shapes={"x": (3, 5, 4)}, inputs={"x": ImageInput(mean=(1, 2, 3))})
    assert declared_inputs(spec, [IMAGE, OTHER]) == [TensorSpec("x", "UINT8", (-1, 5, 4, 3)), OTHER]
    assert declared_inputs(Spec(inputs={"x": ImageInput(layout="NCHW")}), [IMAGE])[0].shape == IMAGE.shape


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (Spec(shapes={"z": (3,)}), r"shapes names 'z'; the model's inputs are \['x', 'y'\]"),
        (Spec(inputs={"z": ImageInput()}), "inputs names 'z'"),
        (Spec(inputs={"y": ImageInput()}), r"the model has INT64 \[1, 7\] there"),
        (Spec(shapes={"x": (3, 5)}), r"shapes\.x is \[3, 5\]; the model has \[3, -1, 4\]"),
        (Spec(shapes={"x": (3, 5, 5)}), r"shapes\.x is \[3, 5, 5\]"),
        (Spec(inputs={"x": ImageInput(scale=(1, 2))}), "scale has 2 numbers; the model has 3 channels"),
    ],
)
def test_declared_inputs_that_do_not_fit(spec: Spec, named: str) -> None:
    with pytest.raises(ModelRefused, match=named):
        declared_inputs(spec, [IMAGE, OTHER])


def test_pixels_become_what_the_model_takes() -> None:
    pixels = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    image = ImageInput(mean=(1, 2), scale=(4, 8))
    found = as_model_inputs({"x": image}, {"x": pixels, "y": pixels}, {"x": "FP32", "y": "UINT8"})
    assert found["y"] is pixels
    assert (found["x"].dtype, found["x"].shape) == (np.float32, (2, 2, 3, 4))
    for n, h, w, c in np.ndindex(2, 3, 4, 2):
        assert found["x"][n, c, h, w] == (float(pixels[n, h, w, c]) - image.mean[c]) / image.scale[c]
