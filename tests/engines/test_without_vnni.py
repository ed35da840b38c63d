"""INT8 on a CPU without VNNI, whose sums of byte products overflow in 16 bits: on any machine, by limiting oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines import hardware, precision
from engines.report import Report, decode_report
from engines.repository import REPORT_FILE
from engines.spec import Spec
from engines.variants import Variant

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
    assert [one.passed for one in seven] == [True] * 4, "two calibrators, signed and unsigned"
    assert "7-bit" in report.chosen
    assert report.accuracy.value > 0.99


def test_weights_of_eight_bits_overflow_and_are_refused_for_it(report: Report) -> None:
    """Signed activations, whose products are the largest: what the runtime answers is not what the graph says."""
    wrong = next(one for one in report.candidates if one.name == "int8 mean_minmax, signed, 8-bit weights")
    assert not wrong.passed
    assert "OpenVINO answers differently from ONNX Runtime" in wrong.reason


@pytest.mark.parametrize(
    ("has_vnni", "wrong", "tried"),
    [
        (True, "", ["signed 8", "unsigned 8"]),
        (True, "signed 8", ["signed 8", "unsigned 8", "signed 7", "unsigned 7"]),
        (False, "", ["signed 7", "unsigned 7", "signed 8", "unsigned 8"]),
    ],
)  # fmt: skip
def test_with_vnni_weights_of_seven_bits_are_tried_only_where_those_of_eight_are_wrong(
    has_vnni: bool, wrong: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def variants(of: Variant, quantizer: object, calibrator: str, bits: int) -> Iterator[Variant]:
        return (Variant(f"int8 {calibrator} {form} {bits}", "int8", of.model) for form in ("signed", "unsigned"))

    class Found:
        notes: tuple[str, ...] = ()

        def has_wrong(self, beginning: str) -> bool:
            return bool(wrong) and beginning == "int8 minmax"

        def has_int8(self) -> bool:
            return True

    monkeypatch.setattr(precision, "has_vnni", lambda: has_vnni)
    monkeypatch.setattr(precision, "measured", lambda of, calibration, calibrators: None)
    monkeypatch.setattr(precision, "int8_variants", variants)
    source = Variant("fp32", "fp32", onnx.ModelProto())
    found = precision._int8(source, [], Spec(calibrator="minmax"), Found())  # type: ignore[arg-type]
    assert [one.name.removeprefix("int8 minmax ") for one in found] == tried


@pytest.mark.parametrize(
    ("flags", "most", "has"),
    [
        ("fma avx2 avx_vnni", "", True), ("fma avx512f avx512_vnni", "", True), ("fma avx2 avx512f", "", False),
        ("avx_vnni", "AVX2", False), ("avx512_vnni", "AVX512_CORE", False), ("avx_vnni", "AVX2_VNNI", True),
        ("avx512_vnni", "all", True), ("", "", False),
    ],
)  # fmt: skip
def test_vnni_is_what_the_cpu_has_and_onednn_may_use(
    flags: str, most: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: {"flags": flags})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert hardware.has_vnni() == has
