"""The build's own function, in this process, with the files that were sent along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.build import build
from engines.manifest import Manifest
from engines.report import Report, decode_report
from engines.repository import REPORT_FILE
from engines.request import BuildRequest
from engines.spec import Spec, encode_spec

__all__ = ["built"]


def built(
    folder: Path, model: onnx.ModelProto, spec: Spec | None = None, **samples: dict[str, Any]
) -> tuple[Manifest, Report]:
    """`calibration` and `validation` are arrays by name; the plan is left in `folder`/out."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if spec is not None:
        (folder / "spec.json").write_bytes(encode_spec(spec))
    for name, arrays in samples.items():
        np.savez(folder / f"{name}.npz", **arrays)
    out = folder / "out"
    out.mkdir()
    manifest = build(BuildRequest.of_folder(folder), out)
    return manifest, decode_report((out / REPORT_FILE).read_bytes())
