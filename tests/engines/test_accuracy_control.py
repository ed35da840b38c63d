"""Beside NNCF's own accuracy control, on the model that only a mixture serves: ours keeps no more layers in float."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nncf
import numpy as np
import onnx

from engines.canonical import canonical
from engines.passes.float_layers import quantized_layers
from engines.reference import Reference
from engines.spec import Spec
from tests.engines.test_precision import planted
from tests.support.builds import built

BUDGET = 0.02


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_ours_holds_the_budget_with_no_more_layers_in_float(tmp_path: Path) -> None:
    sent, rows = planted()
    model, _ = canonical(sent)
    reference = Reference(model)

    def cosine(candidate: onnx.ModelProto, samples: Iterable[dict[str, np.ndarray]]) -> tuple[float, None]:
        run = Reference(candidate)
        pairs = [(run(sample)["y"], reference(sample)["y"]) for sample in samples]
        return float(np.mean([(unit(got) * unit(want)).sum() for got, want in pairs])), None

    samples = nncf.Dataset([{"x": rows[i : i + 1]} for i in range(len(rows))])
    theirs = nncf.quantize_with_accuracy_control(
        model, samples, samples, cosine, max_drop=BUDGET, drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )  # fmt: skip
    spec = Spec(accuracy_budget=BUDGET, metric="cosine", calibrator="minmax", objective="size")
    _, report = built(tmp_path, sent, spec, calibration={"x": rows})
    chosen = next(one for one in report.candidates if one.name == report.chosen)
    assert report.accuracy.loss <= BUDGET
    assert chosen.int8_layers >= len(quantized_layers(theirs)) > 0
    assert set(chosen.float_layers).isdisjoint(quantized_layers(theirs))
