"""Models for a container: the samples, and those that the conformance tests ask for, in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from tests.support import onnx_models
from tests.support.servers import ROOT

__all__ = ["CONFORMANCE", "SAMPLES", "place_models"]

SAMPLES = tuple(sorted(f"{path.parents[1].name}/1" for path in (ROOT / "model_repo").glob("*/1/model.onnx")))
CONFORMANCE = ("add_sub/1", "bools/1", "half/1", "linear/1", "lstm/1", "versions/1", "versions/2", "patient/1")


def place_models(folder: Path) -> Path:
    """SAMPLES and CONFORMANCE; `patient` is for those that need a request to be in flight for a while."""
    shutil.copytree(ROOT / "model_repo", folder, ignore=shutil.ignore_patterns(".cache", "__pycache__", "*.npz"))
    onnx_models.place(folder, "add_sub", onnx_models.add_sub())
    onnx_models.place(folder, "linear", onnx_models.linear(), config="[labels]\ny = 'labels.txt'\n")
    (folder / "linear/labels.txt").write_text("zero\none\ntwo\nthree\n")
    onnx_models.place(folder, "lstm", onnx_models.time_major_lstm(batch_first=True))
    onnx_models.place(folder, "versions", onnx_models.linear(scale=1.0), 1, config='versions = "all"\n')
    onnx_models.place(folder, "versions", onnx_models.linear(scale=2.0), 2)
    onnx_models.place(folder, "half", _unary("Neg", TensorProto.FLOAT16))
    onnx_models.place(folder, "bools", _unary("Not", TensorProto.BOOL))
    onnx_models.place(folder, "patient", onnx_models.linear(), config="[batching]\nmax_queue_delay_us = 2_000_000\n")
    for path in folder.rglob("*"):  # whoever runs the tests may hide new files from others
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o755)
    return folder


def _unary(operator: str, kind: int) -> Any:
    node = helper.make_node(operator, ["x"], ["y"], name="unary")
    return onnx_models.build([node], {"x": (kind, ["N", 4])}, {"y": (kind, ["N", 4])})
