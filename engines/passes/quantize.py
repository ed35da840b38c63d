"""Quantize a graph to INT8 after training: NNCF measures the ranges on samples and puts Quantize/Dequantize pairs in.

Algebra   x ~ s q,  q = round(x / s) clipped to 8 bits, symmetric: zero is exact, and products of whole numbers need no
          correction; one s a tensor for activations, one a channel for weights
Pattern   what NNCF's hardware description calls quantizable: convolutions, products, sums between them
Check     done by whoever asks: a candidate is judged by its own answers
Rewrite   Q/DQ before every quantized input; weights as Q/DQ of constants, biases stay float

With `overflow_fix`, weights use 7 of their 8 bits: without VNNI a CPU adds pairs of products in 16 bits.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping

import onnx

from engines.errors import ModelRefused
from engines.passes.stored_casts import store_casts
from engines.reference import Arrays

__all__ = ["CALIBRATORS", "quantize"]

CALIBRATORS: Mapping[str, str] = {
    "minmax": "MINMAX", "mean_minmax": "MEAN_MINMAX", "percentile": "MEAN_QUANTILE", "mse": "HISTOGRAM",
}  # fmt: skip
"""How the range of an activation follows from samples, and NNCF's name for it."""


def quantize(
    model: onnx.ModelProto, samples: Iterable[Arrays], count: int, calibrator: str = "mean_minmax", *,
    overflow_fix: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """A copy with Q/DQ pairs, their ranges measured on `count` samples.

    `model` has opset 21 and no operators of others' domains (NNCF runs none). Raises ModelRefused where NNCF cannot.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(40)
    parameters = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if overflow_fix else OverflowFix.DISABLE,
        activations_range_estimator_params=getattr(RangeEstimatorParametersSet, CALIBRATORS[calibrator]),
        # before depthwise convolutions it would take a scale a channel, which TensorRT refuses, and cut ranges there
        activations_quantization_params=QuantizationParameters(per_channel=False),
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made: onnx.ModelProto = nncf.quantize(
                store_casts(model),
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=count,
                advanced_parameters=parameters,
            )
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "it gave no reason")
        raise ModelRefused(f"NNCF cannot quantize the model: {type(error).__name__}: {said[:300]}") from error
    return made
