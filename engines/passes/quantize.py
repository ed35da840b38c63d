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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx

from engines.errors import ModelRefused
from engines.passes.binary_marks import marked_nodes, with_stored_weights
from engines.passes.measured_ranges import collect_together
from engines.passes.stored_casts import store_casts
from engines.reference import Arrays

__all__ = ["CALIBRATORS", "Quantizer", "quantize"]

CALIBRATORS: Mapping[str, str] = {
    "minmax": "MINMAX", "mean_minmax": "MEAN_MINMAX", "percentile": "MEAN_QUANTILE", "mse": "HISTOGRAM",
}  # fmt: skip
"""How the range of an activation follows from samples, and NNCF's name for it."""


def quantize(
    model: onnx.ModelProto, samples: Iterable[Arrays], count: int, calibrator: str = "mean_minmax", *,
    overflow_fix: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """A copy with Q/DQ pairs, as `Quantizer` makes it."""
    return Quantizer(model, samples, count, [calibrator]).quantized(calibrator, overflow_fix=overflow_fix)


class Quantizer:
    """Ranges and means of one model, measured once on `count` samples, for copies by each of the calibrators, with
    weights of 7 and of 8 bits.

    Binary layers are left as they are: they have fewer bits. `model` has opset 21 and no operators of others' domains
    (NNCF runs none). Raises ModelRefused where NNCF cannot.
    """

    def __init__(
        self, model: onnx.ModelProto, samples: Iterable[Arrays], count: int, calibrators: Sequence[str]
    ) -> None:
        with _said_by_nncf():
            self._prepare(with_stored_weights(store_casts(model)), samples, count, calibrators)

    def _prepare(
        self, model: onnx.ModelProto, samples: Iterable[Arrays], count: int, calibrators: Sequence[str]
    ) -> None:
        """The first half of `nncf.quantize`, which would measure anew for each copy."""
        import nncf
        from nncf.common.factory import build_graph
        from nncf.onnx.graph.passes import apply_preprocess_passes

        ignored = marked_nodes(model)
        self._model = apply_preprocess_passes(model)
        self._graph = build_graph(self._model)
        self._pipelines = {calibrator: _pipeline(calibrator, count, ignored) for calibrator in calibrators}
        points = [
            pipeline.get_statistic_points_for_step(0, self._model, self._graph) for pipeline in self._pipelines.values()
        ]
        self._statistics = collect_together(points, self._model, self._graph, nncf.Dataset(samples))

    def quantized(self, calibrator: str, *, overflow_fix: bool = True) -> onnx.ModelProto:
        """A copy with Q/DQ pairs; weights use 7 of their 8 bits with `overflow_fix`."""
        from nncf.onnx.graph.passes import compress_quantize_weights_transformation
        from nncf.quantization.advanced_parameters import OverflowFix

        fix = OverflowFix.ENABLE if overflow_fix else OverflowFix.DISABLE
        with _said_by_nncf():
            pipeline = self._pipelines[calibrator]
            ((ranges, _),) = pipeline.pipeline_steps
            ranges._overflow_fix = fix  # it belongs to the second half alone
            made: onnx.ModelProto = pipeline.run_step(0, self._statistics, self._model, self._graph)
            compress_quantize_weights_transformation(made)
        return made


def _pipeline(calibrator: str, count: int, ignored: list[str]) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
    from nncf.quantization.algorithms.post_training.pipeline import create_ptq_pipeline
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    parameters = AdvancedQuantizationParameters(
        activations_range_estimator_params=getattr(RangeEstimatorParametersSet, CALIBRATORS[calibrator]),
        # before depthwise convolutions it would take a scale a channel: TensorRT refuses them, and they cut ranges
        activations_quantization_params=QuantizationParameters(per_channel=False),
        disable_channel_alignment=True,  # there is none for ONNX
    )
    return create_ptq_pipeline(
        preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=count, advanced_parameters=parameters,
        ignored_scope=nncf.IgnoredScope(names=ignored),
    )  # fmt: skip


@contextlib.contextmanager
def _said_by_nncf() -> Iterator[None]:
    """Its tables and bars are nobody's, its errors ours, and it tells nobody that it was used."""
    os.environ.setdefault("NNCF_CI", "1")  # it would send that over the network, wherever openvino_telemetry can be had
    import nncf

    nncf.set_log_level(40)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "it gave no reason")
        raise ModelRefused(f"NNCF cannot quantize the model: {type(error).__name__}: {said[:300]}") from error
