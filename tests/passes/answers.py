"""Run a model before and after a pass, in ONNX Runtime, and compare."""

from __future__ import annotations

import numpy as np
import onnx

from engines.batchproof import differs
from engines.frontend.onnx import tensor_specs
from engines.reference import Arrays, Reference
from engines.samples import Sampler
from engines.verify import rounding_bound

__all__ = ["assert_same_answers", "operators", "rows_of"]


def rows_of(model: onnx.ModelProto, size: int = 5, count: int = 2) -> list[Arrays]:
    """Inputs that differ from each other, all variable dimensions of `size`."""
    inputs, _ = tensor_specs(model)
    return [Sampler(inputs, {}, size, 4).draw(100 + seed) for seed in range(count)]


def assert_same_answers(
    before: onnx.ModelProto, after: onnx.ModelProto, size: int = 5, rows: list[Arrays] | None = None
) -> None:
    """`after` answers as `before` does, up to rounding, and differently for different inputs."""
    onnx.checker.check_model(after, full_check=True)
    was, now, rounding = Reference(before), Reference(after), rounding_bound(before)
    answers = []
    for row in rows or rows_of(before, size):
        want, got = was(row), now(row)
        assert list(want) == list(got)
        for name, array in want.items():
            found = differs(array, got[name], rounding)
            assert not found.differs, f"{name} is off by {found.difference}, bound {found.bound}"
        answers.append(want)
    first, second = answers[0], answers[1]
    assert any(not np.array_equal(first[name], second[name]) for name in first), "these samples show nothing"


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
