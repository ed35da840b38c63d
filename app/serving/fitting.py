"""Whether a call fits its model: names, datatypes, shapes, rows, values. Pure; the answer is what a ticket carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from app.serving.errors import InvalidInput
from app.serving.limits import ModelOptions
from app.serving.stats import Stats
from app.serving.ticket import ShapeKey
from engines.tensor import DYNAMIC, TensorSpec

__all__ = ["Call", "Fitted", "InputTensor", "Served", "fit", "row_shape"]

_ALL_BITS = 63


class Served(Protocol):
    """What is read of a version to take a request for it apart: of an endpoint, or of one in another process."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def options(self) -> ModelOptions: ...

    @property
    def stats(self) -> Stats: ...


class InputTensor(NamedTuple):
    """One decoded input: `array` has the shape and the datatype that the client declared."""

    datatype: str
    array: np.ndarray


class Fitted(NamedTuple):
    """Arrays in the model's terms, in its order; their rows and their shape key.

    `guarded`: inputs whose values matter too, and were not looked at if it comes with a call.
    """

    arrays: dict[str, np.ndarray]
    rows: int
    shape_key: ShapeKey
    guarded: tuple[TensorSpec, ...] = ()


class Call(NamedTuple):
    """A decoded request. `outputs` None means all; `timeout_us` and `priority` 0 mean not given.

    `fitted`: what `fit` has found of a call to the same endpoint that differs in values alone, with the arrays of this
    one; `inputs` may then be empty.
    """

    inputs: Mapping[str, InputTensor]
    outputs: tuple[str, ...] | None = None
    priority: int = 0
    timeout_us: int = 0
    sequence_id: int | str = 0
    fitted: Fitted | None = None


def fit(endpoint: Served, call: Call) -> Fitted:
    """What a ticket carries; InvalidInput says what does not fit."""
    fitted = _fit_shapes(endpoint, call) if call.fitted is None else call.fitted
    for spec in fitted.guarded:
        _check_values(endpoint.model, spec, fitted.arrays[spec.name])
    return fitted


def _fit_shapes(endpoint: Served, call: Call) -> Fitted:
    model, given = endpoint.model, call.inputs
    if len(given) != len(endpoint.inputs):
        raise InvalidInput(
            f"expected {len(endpoint.inputs)} inputs but got {len(given)} inputs for model '{model}'; it takes "
            + ", ".join(f"'{spec.name}'" for spec in endpoint.inputs)
        )
    if call.outputs is not None:
        offered = {spec.name for spec in endpoint.outputs}
        for name in call.outputs:
            if name not in offered:
                raise InvalidInput(
                    f"unexpected inference output '{name}' for model '{model}'; it gives {_quoted(offered)}"
                )
    arrays: dict[str, np.ndarray] = {}
    key: list[tuple[int, ...]] = []
    guarded: list[TensorSpec] = []
    rows = 0
    for spec in endpoint.inputs:
        tensor = given.get(spec.name)
        if tensor is None:
            raise _unexpected(endpoint, given)
        arrays[spec.name] = tensor.array
        shape = tensor.array.shape
        _check(model, spec, tensor.datatype, shape)
        if spec.value_range is not None or spec.integer_bits < _ALL_BITS or spec.largest:
            guarded.append(spec)
        if spec.batch_axis is None:
            key.append(row_shape(spec, shape))
            continue
        if rows and shape[spec.batch_axis] != rows:
            raise InvalidInput(
                f"input '{spec.name}' has {shape[spec.batch_axis]} rows, other inputs of the request have {rows}, "
                f"for model '{model}'"
            )
        rows = shape[spec.batch_axis]
        key.append(row_shape(spec, shape))
    limit = endpoint.options.limits.max_batch_rows
    if limit and rows > limit:
        raise InvalidInput(f"inference request batch-size must be <= {limit} for '{model}', got {rows}")
    return Fitted(arrays, max(1, rows), tuple(key), tuple(guarded))


def row_shape(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an array with this shape: a part of its shape key."""
    return shape if spec.batch_axis is None else shape[: spec.batch_axis] + shape[spec.batch_axis + 1 :]


def _unexpected(endpoint: Served, given: Mapping[str, InputTensor]) -> InvalidInput:
    """As many inputs as the model has, but one of them has another name."""
    known = {spec.name for spec in endpoint.inputs}
    name = next(name for name in given if name not in known)
    return InvalidInput(f"unexpected inference input '{name}' for model '{endpoint.model}'; it takes {_quoted(known)}")


def _check(model: str, spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
    if datatype != spec.datatype:
        raise InvalidInput(
            f"inference input '{spec.name}' data-type is '{datatype}', but model '{model}' expects '{spec.datatype}'"
        )
    fits = len(shape) == len(spec.shape) and all(
        want in (DYNAMIC, got) for want, got in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"unexpected shape for input '{spec.name}' for model '{model}'. Expected {_dims(spec.shape)}, "
            f"got {_dims(shape)}"
        )
    if 0 in shape:
        raise InvalidInput(
            f"unexpected shape for input '{spec.name}' for model '{model}'. Expected at least one element in every "
            f"dimension, got {_dims(shape)}"
        )


def _check_values(model: str, spec: TensorSpec, array: np.ndarray) -> None:
    if spec.value_range is not None or spec.integer_bits < _ALL_BITS:
        _check_integers(model, spec, array)
    if spec.largest:
        _check_magnitudes(model, spec, array)


def _check_integers(model: str, spec: TensorSpec, array: np.ndarray) -> None:
    """Refuse integers that the engine would answer wrongly instead of failing."""
    limit = 1 << spec.integer_bits
    low, high = spec.value_range or (-limit, limit - 1)
    low, high = max(low, -limit), min(high, limit - 1)
    least, most = int(array.min()), int(array.max())
    if least < low or most > high:
        raise InvalidInput(
            f"input '{spec.name}' for model '{model}' holds {least if least < low else most}; expected whole numbers "
            f"from {low} to {high}"
        )


def _check_magnitudes(model: str, spec: TensorSpec, array: np.ndarray) -> None:
    """Refuse finite numbers that the engine's own datatype does not hold."""
    magnitudes = np.abs(array)
    if np.any((magnitudes > spec.largest) & (magnitudes < np.inf)):
        most = magnitudes[np.isfinite(magnitudes)].max()
        raise InvalidInput(
            f"input '{spec.name}' for model '{model}' holds a number of magnitude {most:g}; expected at most "
            f"{spec.largest:g}: the engine computes {spec.datatype} in a narrower type"
        )


def _dims(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(str(d) for d in shape) + "]"


def _quoted(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
