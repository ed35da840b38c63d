"""Samples in an npz: what fits is read in pieces, what does not is refused with its reason."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engines.errors import ModelRefused
from engines.inputs import as_model_inputs, declared_inputs
from engines.npz import read_samples
from engines.spec import ImageInput, Spec
from engines.tensor import TensorSpec

X = TensorSpec("x", "FP32", (-1, 3))
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "samples.npz"
    np.savez(path, **arrays)
    return path


def inputs_of(path: Path, *specs: TensorSpec) -> list[dict[str, np.ndarray]]:
    return [sample.inputs for sample in read_samples(path, specs, with_truth=False)]


@pytest.mark.parametrize("shape", [(-1, 3), (1, 3)])
def test_samples_are_rows_where_the_first_dimension_is_variable_or_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    found = inputs_of(saved(tmp_path, x=TABLE), TensorSpec("x", "FP32", shape))
    assert [sample["x"].shape for sample in found] == [(1, 3)] * 4
    assert np.array_equal(np.concatenate([sample["x"] for sample in found]), TABLE)


@pytest.mark.parametrize(("shape", "sample"), [((2, 3), (2, 3)), ((-1, 3), (2, 3)), ((2, -1, 3), (2, 1, 3)), ((), ())])
def test_a_sample_may_be_a_whole_input(tmp_path: Path, shape: tuple[int, ...], sample: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random((5, *sample), np.float32)
    found = inputs_of(saved(tmp_path, x=array), TensorSpec("x", "FP32", shape))
    assert all(
        np.array_equal(one["x"], want) and one["x"].shape == sample for one, want in zip(found, array, strict=True)
    )


def test_an_image_input_is_read_as_the_pixels_that_clients_send(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    spec = Spec(inputs={"x": ImageInput(mean=(1, 2, 3), scale=(4,))})
    declared = declared_inputs(spec, [TensorSpec("x", "FP32", (1, 3, 4, 5))])
    samples = inputs_of(saved(tmp_path, x=pixels), *declared)
    assert [sample["x"].dtype for sample in samples] == [np.uint8] * 3
    assert np.array_equal(np.concatenate([sample["x"] for sample in samples]), pixels)
    model_input = as_model_inputs(spec.inputs, samples[1], {"x": "FP32"})["x"]
    assert np.array_equal(model_input, ((pixels[1:2] - np.float32([1, 2, 3])) / 4).transpose(0, 3, 1, 2))
    with pytest.raises(ModelRefused, match=r"expected \[samples, 4, 5, 3\] or \[samples, 1, 4, 5, 3\]"):
        inputs_of(saved(tmp_path, x=pixels.transpose(0, 3, 1, 2)), *declared)
    with pytest.raises(ModelRefused, match=r"'x' has type float32; expected uint8 \(UINT8\) or values"):
        inputs_of(saved(tmp_path, x=pixels / np.float32(255)), *declared)


def test_every_pass_reads_the_same_and_packed_columns_and_swapped_bytes_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    np.savez_compressed(path, x=np.asfortranarray(TABLE.astype(">f4")), y=np.arange(4))
    samples = read_samples(path, [X, TensorSpec("y", "INT64", (-1,))], with_truth=False)
    for _ in range(2):
        assert [sample.inputs["x"].tolist() for sample in samples] == TABLE[:, None].tolist()
    assert samples.count == 4
    assert not samples.synthetic


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (TABLE.astype(np.float64), "FP32"), (TABLE.astype(np.int64), "FP32"), (TABLE.astype(np.float64), "INT32"),
        (TABLE.astype(np.int64), "UINT8"), (TABLE > 3, "FP16"), ((TABLE > 3).astype(np.uint8), "BOOL"),
        (TABLE.astype(np.float32) + np.float32(np.inf), "FP16"), (TABLE.astype(ml_dtypes.bfloat16), "BF16"),
    ],
)  # fmt: skip
def test_types_that_hold_the_same_values_are_taken(tmp_path: Path, array: np.ndarray, datatype: str) -> None:
    found = inputs_of(saved(tmp_path, x=array), TensorSpec("x", datatype, (-1, 3)))
    got = np.concatenate([sample["x"] for sample in found])
    assert np.array_equal(got.astype(np.float64), array.astype(np.float64))


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (TABLE + 0.5, "INT64"), (TABLE * 100, "UINT8"), (TABLE.astype(np.int64) - 1, "UINT64"), (TABLE, "BOOL"),
        (TABLE.astype(np.float64) * 1e40, "FP32"), (TABLE * 1e5, "FP16"), (TABLE * np.nan, "INT32"),
        (TABLE.astype(ml_dtypes.bfloat16), "FP32"),
    ],
)  # fmt: skip
def test_values_that_the_input_cannot_hold_are_refused(tmp_path: Path, array: np.ndarray, datatype: str) -> None:
    with pytest.raises(ModelRefused, match=rf"samples.npz: 'x' has type .*; expected .*\({datatype}\) or values"):
        inputs_of(saved(tmp_path, x=array), TensorSpec("x", datatype, (-1, 3)))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"z": TABLE}, r"it has the arrays \['z'\]; expected \['x'\]"),
        ({"x": TABLE, "z": TABLE}, r"it has the arrays \['x', 'z'\]"),
        ({"x": TABLE, "labels": np.zeros(4, int)}, "'labels' and 'targets' belong into the validation file"),
        ({"x": TABLE[:, :2]}, r"'x' has shape \[4, 2\]; expected \[samples, 3\] or \[samples, any, 3\]"),
        ({"x": TABLE[0]}, r"'x' has shape \[3\]"),
        ({"x": TABLE[:0]}, "the same number of samples, 1 to 1000000"),
        ({"x": np.array(["a"])}, "'x' has elements '<U1'; expected booleans, integers or floats"),
        ({"x": TABLE.astype(complex)}, "'x' has elements '<c16'"),
        ({"x": TABLE.astype([("a", "<f4")])}, "'x' has elements"),
        ({"x": np.float32(1)}, r"'x' has shape \(\); expected 1 to 16 sizes"),
    ],
)
def test_arrays_that_do_not_fit_the_inputs(tmp_path: Path, arrays: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelRefused, match=named):
        inputs_of(saved(tmp_path, **arrays), X)


def test_inputs_must_have_as_many_samples_as_each_other(tmp_path: Path) -> None:
    path = saved(tmp_path, x=TABLE, y=TABLE[:3])
    with pytest.raises(ModelRefused, match=r"they hold \{'x': 4, 'y': 3\}"):
        inputs_of(path, X, TensorSpec("y", "FP32", (-1, 3)))


@pytest.mark.parametrize("truth", [{"labels": np.array([3, 0, 1, 2])}, {"targets": TABLE * 2}])
def test_a_validation_file_has_the_truth_beside_each_sample(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    samples = read_samples(saved(tmp_path, x=TABLE, **truth), [X], with_truth=True)
    ((name, expected),) = truth.items()
    assert samples.truth == name
    assert np.array_equal(np.array([sample.truth for sample in samples]), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.float16])
@pytest.mark.parametrize("form", ["numbers", "column", "one-hot", "one-hot beside a one"])
def test_labels_come_in_several_forms(tmp_path: Path, dtype: type, form: str) -> None:
    classes = np.array([3, 0, 1, 2])
    forms = {"numbers": classes, "column": classes[:, None], "one-hot": np.eye(5)[classes],
             "one-hot beside a one": np.eye(5)[classes][:, None]}  # fmt: skip
    samples = read_samples(saved(tmp_path, x=TABLE, labels=forms[form].astype(dtype)), [X], with_truth=True)
    truths = [sample.truth for sample in samples]
    assert [int(truth) for truth in truths if truth is not None] == [3, 0, 1, 2]
    assert all(truth is not None and truth.shape == () and truth.dtype == np.int64 for truth in truths)


def test_an_input_of_that_name_is_an_input(tmp_path: Path) -> None:
    path = saved(tmp_path, labels=TABLE, targets=np.ones(4))
    samples = read_samples(path, [TensorSpec("labels", "FP32", (-1, 3))], with_truth=True)
    assert samples.truth == "targets"
    assert next(iter(samples)).inputs["labels"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("truth", "named"),
    [
        ({}, "holds either 'labels' or 'targets'"),
        ({"labels": np.zeros(4, int), "targets": TABLE}, "holds either 'labels' or 'targets'"),
        ({"labels": np.array([0, 1, 1.5, 2.5])}, "sample 2: the label is no whole number"),
        ({"labels": np.array([0, np.nan, 1, 2])}, "sample 1: the label is no whole number"),
        ({"labels": TABLE}, "sample 0: the label is not one-hot: expected a single 1, and 0 else"),
        ({"labels": np.array([[1, 0], [0, 1], [0, 1], [1, 1]])}, "sample 3: the label is not one-hot"),
        ({"labels": np.zeros((4, 2, 2))}, r"shape \[4, 2, 2\]; expected integers \[samples\]"),
        ({"targets": np.where(TABLE == 7, np.nan, TABLE)}, r"sample 2: the target is not a number \(NaN\)"),
        ({"labels": np.array([0, 1, -1, 2])}, "a label is -1; classes are numbered from 0 on"),
        ({"labels": np.zeros(3, int)}, "they hold"),
    ],
)
def test_a_truth_that_does_not_fit(tmp_path: Path, truth: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelRefused, match=named):
        read_samples(saved(tmp_path, x=TABLE, **truth), [X], with_truth=True)


def test_memory_stays_small_however_much_there_is(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    np.savez_compressed(path, x=np.zeros((128, 2**18), np.float32))  # 128 MiB
    tracemalloc.start()
    try:
        samples = read_samples(path, [TensorSpec("x", "FP32", (-1, 2**18))], with_truth=False)
        assert sum(sample.inputs["x"].nbytes for sample in samples) == 2**27
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
