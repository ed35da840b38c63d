"""What the benchmark of precisions says of a CPU without VNNI was measured in a child that has none."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np
import pytest

from benchmarks import precision, precision_avx2
from benchmarks.resnet_race import cosine_less_mean


def test_the_child_is_limited_and_its_last_line_is_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        asked.append({"command": command[1:], "limited to": given["env"]["ONEDNN_MAX_CPU_ISA"]})
        return subprocess.CompletedProcess(command, 0, f"a word\n{json.dumps({'cosine': 0.9995})}\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert precision_avx2.measured() == {"cosine": 0.9995}
    assert asked == [{"command": ["-m", "benchmarks.precision_avx2"], "limited to": "AVX2"}]


def test_a_cosine_is_of_what_inputs_change() -> None:
    rng = np.random.default_rng(0)
    answers, other = rng.standard_normal((2, 64, 10))
    assert cosine_less_mean(answers + 100, answers + 200) == pytest.approx(1)
    assert abs(cosine_less_mean(answers + 100, other + 100)) < 0.2


def test_a_ratio_says_what_it_is_of() -> None:
    assert precision._times(36.0, 20.0) == "1.80x (36.0 against 20.0)"
    assert precision._times(None, 20.0) == "not measured"
