"""INT8 on a CPU without VNNI, whose sums of byte products overflow in 16 bits: on any machine, by limiting oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.report import Report, decode_report
from engines.repository import REPORT_FILE

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "model_repo" / "fashion_cnn"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("plan")
    pictures = np.load(SAMPLE / "heldout.npz")["image"].astype(np.float32) / 255
    np.savez(folder / "calibration.npz", image=pictures[:128])
    (folder / "spec.json").write_text('{"metric": "cosine", "accuracy_budget": 0.01}')
    command = [sys.executable, "-m", "engines", "build", str(SAMPLE / "1" / "model.onnx"), "--out", str(folder)]
    given = ["--calibration", str(folder / "calibration.npz"), "--spec", str(folder / "spec.json")]
    done = subprocess.run(
        [*command, *given], env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "NNCF_CI": "1"}, cwd=ROOT, timeout=120,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:]
    return decode_report((folder / REPORT_FILE).read_bytes())


def test_it_ran_on_what_such_a_cpu_has(report: Report) -> None:
    kernels = {layer.kernel for layer in report.layers}
    assert any("avx2" in kernel for kernel in kernels)
    assert not any("vnni" in kernel or kernel.startswith("brgconv_avx512") for kernel in kernels)


def test_weights_of_seven_bits_are_right_there(report: Report) -> None:
    seven = [one for one in report.candidates if one.precision == "int8" and "7-bit" in one.name]
    assert [one.passed for one in seven] == [True, True]
    assert "7-bit" in report.chosen
    assert report.accuracy.value > 0.99


def test_weights_of_eight_bits_overflow_and_are_refused_for_it(report: Report) -> None:
    """Signed activations, whose products are the largest: what the runtime answers is not what the graph says."""
    wrong = next(one for one in report.candidates if one.name == "int8 mean_minmax, signed, 8-bit weights")
    assert not wrong.passed
    assert "OpenVINO answers differently from ONNX Runtime" in wrong.reason
