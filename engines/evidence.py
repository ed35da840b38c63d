"""What a build found out, put into its report."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Sequence
from typing import NamedTuple

import onnx

from engines.accuracy import budget_of
from engines.engine import counts_decisions
from engines.graphs import opset_of
from engines.hardware import cpu_model
from engines.manifest import Manifest
from engines.operators import operators_of
from engines.precision import Improved
from engines.report import PassChange, Report, TargetReport
from engines.spec import Spec, encode_spec
from engines.tensor import DYNAMIC, TensorSpec

__all__ = ["Found", "report_of"]


class Found(NamedTuple):
    """What the stages of a build found, beside its manifest. `sent` is the model as its file has it."""

    sent: onnx.ModelProto
    passes: Sequence[PassChange]
    improved: Improved
    gpus: Sequence[TargetReport]
    digests: dict[str, str]


def report_of(found: Found, manifest: Manifest, spec: Spec, stages_s: dict[str, float]) -> Report:
    """The report of a build that succeeded."""
    improved, sent = found.improved, found.sent
    engine = improved.engine
    is_search = len(improved.candidates) > 1  # FP32 alone may lose anything, unless a budget was set
    return Report(
        model=sent.graph.name or manifest.source.file,
        source_format="ONNX",
        opset=opset_of(sent) or 0,
        nodes=operators_of(sent).total(),
        parameters=sum(math.prod(tensor.dims) for tensor in sent.graph.initializer),
        source_bytes=manifest.source.size_bytes,
        operators=dict(operators_of(sent).most_common()),
        inputs={tensor.name: _words(tensor) for tensor in manifest.inputs},
        outputs={tensor.name: _words(tensor) for tensor in manifest.outputs},
        passes=tuple(found.passes),
        accuracy=engine.accuracy,
        candidates=improved.candidates,
        chosen=improved.chosen,
        layers=engine.layers,
        speeds=engine.speeds,
        max_batch=engine.max_batch,
        batched=manifest.proof.batchable,
        batching="; ".join(manifest.proof.checks) if manifest.proof.batchable else manifest.proof.reason,
        engine_bytes=manifest.engine.size_bytes,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        build_s=manifest.build_s,
        stages_s=stages_s,
        spec=json.loads(encode_spec(spec)),
        tools=manifest.tools,
        hashes={**found.digests, manifest.engine.file: manifest.engine.sha256},
        hardware=f"{cpu_model()} ({manifest.hardware})",
        created=manifest.created,
        notes=(*manifest.remarks, *improved.notes),
        budget=budget_of(spec, engine.accuracy) if is_search else spec.accuracy_budget,
        targets=(_of_cpu(improved, manifest), *found.gpus),
        decisions_count=is_search and counts_decisions(spec, engine.accuracy),
    )


def _of_cpu(improved: Improved, manifest: Manifest) -> TargetReport:
    return TargetReport(
        target=manifest.target, made=True, chosen=improved.chosen, precision=manifest.precision,
        size_bytes=manifest.engine.size_bytes, seconds=manifest.build_s, version=manifest.tools["openvino"],
    )  # fmt: skip


def _words(tensor: TensorSpec) -> str:
    dims = ["rows" if axis == tensor.batch_axis else "any" if size == DYNAMIC else str(size)
            for axis, size in enumerate(tensor.shape)]  # fmt: skip
    return f"{tensor.datatype} [{', '.join(dims)}]"
