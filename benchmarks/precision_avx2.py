"""INT8 of ResNet-18 on a CPU without VNNI, as oneDNN makes one of any: `python -m benchmarks.precision_avx2`.

A build in its sandbox is given few variables, so the child that oneDNN is limited in builds in its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.networks import resnet18
from benchmarks.pictures import drawn_pictures
from benchmarks.resnet_race import IMAGES, compared
from engines.build import build
from engines.handover import ENGINE_FILE
from engines.report import Report, decode_report
from engines.repository import REPORT_FILE
from engines.request import BuildRequest
from engines.spec import Spec, encode_spec
from engines.targets.openvino import reimported

__all__ = ["measured"]

ISA = "AVX2"
_ROOT = Path(__file__).parent.parent
_LIMIT_S = 1800
_PRODUCTS = frozenset({"Convolution", "FullyConnected", "MatMul"})
_CLOSE = Spec(metric="cosine", accuracy_budget=0.0006, calibrator="minmax")
"""Twice what is asked where weights may have all 8 bits: those overflow here, and with 7 this much is lost."""


def measured() -> dict[str, Any]:
    """What `main` found in a child that is limited to AVX2: chosen engine, cosine, rows a second."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": ISA}
    command = [sys.executable, "-m", "benchmarks.precision_avx2"]
    done = subprocess.run(
        command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=_LIMIT_S
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> dict[str, Any]:
    """Raises RuntimeError where products ran in kernels that such a CPU does not have.

    What OpenVINO compiles itself (sums of two, roundings) is not oneDNN's and heeds no limit.
    """
    calibration = drawn_pictures(IMAGES, seed=0)
    (report, int8), (_, fp32) = (_built(spec, calibration) for spec in (_CLOSE, Spec(precision="fp32")))
    products = {layer.kernel for layer in report.layers if layer.op_type in _PRODUCTS}
    beyond = {kernel for kernel in products if "vnni" in kernel or "avx512" in kernel}
    if beyond or not products:
        raise RuntimeError(f"these kernels need more than {ISA}: {', '.join(sorted(beyond)) or 'no product ran'}")
    found = compared(fp32, int8)
    return {
        "chosen": report.chosen, "cosine": found.cosine, "fp32_rows_per_s": found.fp32.rows_per_s,
        "int8_rows_per_s": found.int8.rows_per_s, "fp32_latency_us": found.fp32.latency_us,
        "int8_latency_us": found.int8.latency_us, "kernels": sorted(products),
    }  # fmt: skip


def _built(spec: Spec, calibration: np.ndarray) -> tuple[Report, ov.CompiledModel]:
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        out.mkdir()
        (folder / "model.onnx").write_bytes(resnet18().SerializeToString())
        (folder / "spec.json").write_bytes(encode_spec(spec))
        np.savez(folder / "calibration.npz", image=calibration)
        manifest = build(BuildRequest.of_folder(folder), out)
        report = decode_report((out / REPORT_FILE).read_bytes())
        return report, reimported((out / ENGINE_FILE).read_bytes(), manifest.streams, manifest.threads)


if __name__ == "__main__":
    print(json.dumps(main()))
