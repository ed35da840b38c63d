"""What runs inside peers: the engine of all handlers, and Triton's joining and parting of rows."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.peers.handlers.engine import Engine
from benchmarks.peers.models import tiny
from benchmarks.peers.questions import questions_over
from benchmarks.peers.triton import _CONFIG

MODEL = tiny()
QUESTIONS = questions_over([MODEL], rows=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(MODEL.model.SerializeToString())
    return tmp_path / "model.onnx"


def test_the_engine_answers_as_the_reference_for_any_rows(path: Path) -> None:
    engine = Engine(path, 1)
    for number, rows in enumerate(QUESTIONS.inputs):
        QUESTIONS.check(number, engine.run(rows).copy())
    together = engine.run(np.concatenate(QUESTIONS.inputs)).copy()
    for number, part in enumerate(np.split(together, len(QUESTIONS.inputs))):
        QUESTIONS.check(number, part)


class Tensor(NamedTuple):
    name: str
    values: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.values


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch, path: Path) -> Any:
    """Triton's handler as Triton calls it, over a stand-in for the module that Triton gives it."""
    given = types.ModuleType("triton_python_backend_utils")
    given.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    given.Tensor = lambda name, values: Tensor(name, values.copy())  # type: ignore[attr-defined]
    given.InferenceResponse = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, given.__name__, given)
    module = importlib.import_module("benchmarks.peers.handlers.triton_model")
    monkeypatch.setattr(module, "__file__", str(path.parent / "model.py"))
    made = module.TritonPythonModel()
    config = {
        "input": [{"name": "x"}], "output": [{"name": "y"}], "parameters": {"threads": {"string_value": "1"}},
    }  # fmt: skip
    made.initialize({"model_config": json.dumps(config)})
    yield made
    monkeypatch.delitem(sys.modules, module.__name__)


def test_all_requests_of_a_call_are_one_run_and_rows_go_back_to_whom_they_belong(handler: Any) -> None:
    asked = [np.concatenate(QUESTIONS.inputs[:3]), QUESTIONS.inputs[3], QUESTIONS.inputs[4]]
    runs: list[int] = []
    run = handler._engine.run
    handler._engine.run = lambda rows: runs.append(len(rows)) or run(rows)
    answers = [response[0] for response in handler.execute([{"x": Tensor("x", rows)} for rows in asked])]
    assert runs == [10]
    assert [(one.name, len(one.values)) for one in answers] == [("y", 6), ("y", 2), ("y", 2)]
    for number, part in enumerate(np.split(np.concatenate([one.values for one in answers]), 5)):
        QUESTIONS.check(number, part)


def test_triton_is_told_the_shapes_of_the_model() -> None:
    config = _CONFIG.format(served=MODEL, row=list(MODEL.row), rows=32, threads=2)
    assert 'name: "x", data_type: TYPE_FP32, dims: [64] }' in config
    assert 'name: "y", data_type: TYPE_FP32, dims: [ 10 ] }' in config
    assert "max_batch_size: 32" in config
    assert config.count("{") == config.count("}")
