"""The inputs of a model as its sender declared them: sizes fixed, images sent as bytes. Changes no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from engines.errors import ModelRefused
from engines.spec import ImageInput, Spec
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = ["as_model_inputs", "declared_inputs"]

_IMAGE_AXES = 4


def declared_inputs(spec: Spec, inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """What clients send: the model's own `inputs` with the sizes of `spec.shapes` and the images of `spec.inputs`.

    Raises ModelRefused where a declared input does not exist, or its sizes, channels or axes do not fit the model.
    """
    names = {tensor.name for tensor in inputs}
    for key, declared in (("shapes", spec.shapes), ("inputs", spec.inputs)):
        unknown = sorted(set(declared) - names)
        if unknown:
            raise ModelRefused(f"{key} names {unknown[0]!r}; the model's inputs are {sorted(names)}")
    return [_as_image(_sized(tensor, spec.shapes), spec.inputs.get(tensor.name)) for tensor in inputs]


def as_model_inputs(
    images: Mapping[str, ImageInput], arrays: Mapping[str, np.ndarray], kinds: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """What the model itself takes for what a client sends: pixels as `(pixel - mean) / scale`, channels first.

    `kinds` are the datatypes of the model's inputs. Computed in float32, as the engine does. The slow twin of what is
    folded into the graph.
    """
    given = dict(arrays)
    for name, image in images.items():
        pixels = given[name].astype(np.float32)
        if image.layout == "NHWC":
            pixels = np.moveaxis(pixels, -1, 1)
        mean, scale = (np.asarray(numbers, np.float32).reshape(1, -1, 1, 1) for numbers in (image.mean, image.scale))
        given[name] = np.ascontiguousarray((pixels - mean) / scale, datatype(kinds[name]).numpy)
    return given


def _sized(tensor: TensorSpec, shapes: Mapping[str, tuple[int, ...]]) -> TensorSpec:
    sizes = shapes.get(tensor.name)
    if sizes is None:
        return tensor
    own = tensor.shape[1:]
    fits = len(sizes) == len(own) and all(have in (DYNAMIC, want) for want, have in zip(sizes, own, strict=True))
    if not fits:
        raise ModelRefused(
            f"shapes.{tensor.name} is {list(sizes)}; the model has {list(own)} behind its first dimension, and only "
            "those of -1 may be given a size"
        )
    return msgspec.structs.replace(tensor, shape=(*tensor.shape[:1], *sizes))


def _as_image(tensor: TensorSpec, image: ImageInput | None) -> TensorSpec:
    if image is None:
        return tensor
    if not datatype(tensor.datatype).is_float or len(tensor.shape) != _IMAGE_AXES:
        raise ModelRefused(
            f"inputs.{tensor.name} is declared as an image; the model has {tensor.datatype} {list(tensor.shape)} "
            "there, expected a float of 4 dimensions: rows, channels, height, width"
        )
    rows, channels, height, width = tensor.shape
    for key, numbers in (("mean", image.mean), ("scale", image.scale)):
        if len(numbers) > 1 and channels not in (DYNAMIC, len(numbers)):
            raise ModelRefused(
                f"inputs.{tensor.name}.{key} has {len(numbers)} numbers; the model has {channels} channels in "
                "its second dimension"
            )
    shape = (rows, height, width, channels) if image.layout == "NHWC" else tensor.shape
    return msgspec.structs.replace(tensor, datatype="UINT8", shape=shape)
