"""Fewer bits: what INT8 gains on ResNet-18, what a build of ResNet-50 with samples takes, what real models lose."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino as ov
import psutil

from app.builds.executor import BuildLimits, run_build
from benchmarks import precision_avx2
from benchmarks.networks import resnet18, resnet50
from benchmarks.pictures import drawn_pictures
from benchmarks.precision_models import MODELS
from benchmarks.precision_plot import write_plot
from benchmarks.report import RESULTS
from benchmarks.resnet_race import IMAGES, compared, cosine_less_mean
from engines import manifest as manifests
from engines.handover import ENGINE_FILE
from engines.manifest import Manifest
from engines.passes.dynamic_batch import with_batch_axes
from engines.report import Candidate, Report, decode_report
from engines.repository import MANIFEST_FILE, REPORT_FILE
from engines.request import BuildRequest
from engines.spec import Spec, encode_spec
from engines.targets.openvino import compile_model, read_model, reimported, runner
from tests.support.real_models import RealModel

__all__ = ["run"]

PLOT = RESULTS / "precision.svg"
_LIMITS = BuildLimits(1800, 8 << 30)
_EVERY_S = 0.05
_CLOSE = Spec(metric="cosine", accuracy_budget=0.0003, calibrator="minmax")
_LEAST_COSINE = ">= 0.999"


class _Built(msgspec.Struct):
    """A plan in a folder, and what making it took; memory is that of all its processes together, at its highest."""

    manifest: Manifest
    report: Report
    blob: bytes
    seconds: float
    peak_bytes: int

    def engine(self) -> ov.CompiledModel:
        return reimported(self.blob, self.manifest.streams, self.manifest.threads)

    def candidate(self, name: str) -> Candidate:
        return next(one for one in self.report.candidates if one.name == name)


def run() -> dict[str, Any]:
    """The builds run in their sandbox, one at a time, as a server's do."""
    rows18, details18 = _resnet18()
    rows50, details50 = _resnet50()
    builds = [
        (real, _build(real.model, real.spec, real.calibration, real.validation)) for real in (m() for m in MODELS)
    ]
    shown, plotted = builds[0]
    write_plot(PLOT, shown.what, plotted.report.candidates, plotted.report.chosen)
    return {
        "rows": [*rows18, *rows50, *(_row_of(real, built) for real, built in builds)],
        "resnet18": details18,
        "resnet50": details50,
        "models": {real.what: _details(built) for real, built in builds},
    }


def _row(what: str, measured: str, goal: str) -> dict[str, str]:
    return {"what": what, "measured": measured, "goal": goal, "command": "python -m benchmarks precision"}


def _resnet18() -> tuple[list[dict[str, str]], dict[str, Any]]:
    calibration = {"image": drawn_pictures(IMAGES, seed=0)}
    int8 = _build(resnet18(), _CLOSE, calibration)
    fp32 = _build(resnet18(), Spec(precision="fp32"), calibration)
    found, limited = compared(fp32.engine(), int8.engine()), precision_avx2.measured()
    chosen, own = int8.candidate(int8.report.chosen), int8.candidate("fp32")
    what = "ResNet-18 (random weights) 224x224"
    rows = [
        _row(_cosine_of(what, int8.report.chosen), f"{found.cosine:.5f}", _LEAST_COSINE),
        _row(
            "the same: rows/s against FP32, side by side",
            _times(found.int8.rows_per_s, found.fp32.rows_per_s),
            ">= 1.8x",
        ),
        _row("the same, as its build measured it", _times(chosen.rows_per_s, own.rows_per_s), ">= 1.8x"),
    ]
    limited_to = f"{what}, products limited to {precision_avx2.ISA}, so without VNNI"
    rows += [
        _row(_cosine_of(limited_to, limited["chosen"]), f"{limited['cosine']:.5f}", _LEAST_COSINE),
        _row(
            "the same: rows/s against FP32, side by side",
            _times(limited["int8_rows_per_s"], limited["fp32_rows_per_s"]), ">= 1.8x",
        ),
    ]  # fmt: skip
    race = {"fp32": found.fp32._asdict(), "int8": found.int8._asdict()}
    return rows, {**_details(int8), "cosine": found.cosine, "race": race, "limited": limited}


def _cosine_of(what: str, chosen: str) -> str:
    return f"{what}: cosine of {chosen} to FP32, answers to {IMAGES} other pictures less their mean"


def _times(new: float | None, old: float | None) -> str:
    return f"{new / old:.2f}x ({new:.1f} against {old:.1f})" if new and old else "not measured"


def _resnet50() -> tuple[list[dict[str, str]], dict[str, Any]]:
    model, (name, answer) = resnet50(), ("gpu_0/data_0", resnet50().graph.output[0].name)
    built = _build(model, _CLOSE, {name: drawn_pictures(IMAGES, seed=0)[:, None]})
    asked = {name: drawn_pictures(IMAGES, seed=1)}
    fp32 = runner(compile_model(read_model(with_batch_axes(model, {name: 0})), 1, 2), [answer])
    cosine = cosine_less_mean(*(run(asked)[answer] for run in (fp32, runner(built.engine(), [answer]))))
    int8 = [one for one in built.report.candidates if one.precision == "int8"]
    what = "ResNet-50 (random weights)"
    rows = [
        _row(
            f"build of {what} with {IMAGES} pictures, {len(int8)} INT8 engines tried", f"{built.seconds:.0f} s",
            "< 90 s",
        ),
        _row("the same: peak memory of all its processes", f"{built.peak_bytes / 1e9:.2f} GB", "< 3 GB"),
        _row(_cosine_of(what, built.report.chosen), f"{cosine:.5f}", _LEAST_COSINE),
    ]  # fmt: skip
    return rows, {**_details(built), "cosine": cosine}


def _row_of(real: RealModel, built: _Built) -> dict[str, str]:
    chosen, fp32 = built.candidate(built.report.chosen), built.candidate("fp32")
    return _row(
        f"{real.what}, {chosen.samples} samples: {fp32.metric} of FP32 and of {chosen.name}; latency",
        f"{_value(fp32)} and {_value(chosen)}; {_ms(fp32)} and {_ms(chosen)}", "loss <= 0.01",
    )  # fmt: skip


def _value(one: Candidate) -> str:
    return "no number" if one.value is None else f"{one.value:.4f}"


def _ms(one: Candidate) -> str:
    return "not measured" if one.latency_us is None else f"{one.latency_us / 1e3:.2f} ms"


def _details(built: _Built) -> dict[str, Any]:
    report = built.report
    return {
        "chosen": report.chosen, "stages_s": report.stages_s, "seconds": built.seconds, "peak_bytes": built.peak_bytes,
        "batched": report.batched, "notes": report.notes, "candidates": msgspec.to_builtins(report.candidates),
    }  # fmt: skip


def _build(
    model: Any, spec: Spec, calibration: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray] | None = None
) -> _Built:
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        out.mkdir()
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "spec.json").write_bytes(encode_spec(spec))
        np.savez(folder / "calibration.npz", **calibration)
        if validation is not None:
            np.savez(folder / "validation.npz", **validation)
        before, began_s = _children(), time.monotonic()
        with _Peak(before) as peak:
            asyncio.run(run_build(BuildRequest.of_folder(folder), out, _LIMITS))
        seconds = time.monotonic() - began_s
        found = manifests.decode((out / MANIFEST_FILE).read_bytes())
        report = decode_report((out / REPORT_FILE).read_bytes())
        return _Built(found, report, (out / ENGINE_FILE).read_bytes(), seconds, peak.bytes)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


class _Peak:
    """The resident memory of all child processes that began since, together, at its highest."""

    def __init__(self, others: set[int]) -> None:
        self.bytes, self._others, self._ended = 0, others, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            found = 0
            for child in psutil.Process().children(recursive=True):
                if child.pid not in self._others:
                    try:
                        found += child.memory_info().rss
                    except psutil.Error:  # it has ended meanwhile
                        continue
            self.bytes = max(self.bytes, found)
