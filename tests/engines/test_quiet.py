"""A server tells nobody that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOOK = """
import os, sys, threading
import engines.runtime.openvino, engines.targets.openvino
engines.runtime.openvino.core()
import openvino.tools.ovc.telemetry_utils as used
assert "stub" in used.tm.__name__, used.tm.__name__
assert threading.active_count() == 1, threading.enumerate()
assert not os.path.exists(os.environ["HOME"] + "/intel"), "an identity was written"
"""
ASK = """
from engines.reference import Reference
from tests.support.onnx_models import linear
import numpy as np
Reference(linear())({"x": np.ones((1, 16), np.float32)})
"""


def _run(code: str, home: Path) -> None:
    root = Path(__file__).parent.parent.parent
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_openvino_sends_no_telemetry(tmp_path: Path) -> None:
    _run(LOOK, tmp_path)


def test_onnx_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """What it would send lies in files first."""
    _run(ASK, tmp_path)
    assert list(tmp_path.iterdir()) == []
