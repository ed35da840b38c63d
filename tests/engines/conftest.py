from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.errors import EngineError
from engines.manifest import Manifest
from engines.reference import Arrays
from engines.repository import PlanCache
from engines.runtime.openvino import load_session
from engines.runtime.session import Slot
from tests.support.plans import compile_into


class Built:
    """A model compiled into a cache of its own, and run as the server runs it: imported, by a slot."""

    def __init__(self, folder: Path, model: onnx.ModelProto | bytes) -> None:
        self.source = folder / "model.onnx"
        self.source.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        self.cache = PlanCache(folder / "cache")
        self.manifest: Manifest = compile_into(self.cache, self.source)

    @property
    def axes(self) -> dict[str, int | None]:
        return {spec.name: spec.batch_axis for spec in (*self.manifest.inputs, *self.manifest.outputs)}

    def answer(self, *batches: Arrays) -> list[Arrays]:
        answers = self.answer_all(batches)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def answer_all(self, batches: Sequence[Arrays]) -> list[Any]:
        """One session for all of them; in place of an answer, what was raised."""
        session = load_session(self.cache.entry(self.manifest.key), self.manifest)
        try:
            return [_answered(session.slots[0], batch) for batch in batches]
        finally:
            session.close()


def _answered(slot: Slot, batch: Arrays) -> Arrays | EngineError:
    try:
        return run_slot(slot, batch)
    except EngineError as error:
        return error


def run_slot(slot: Slot, inputs: Arrays) -> Arrays:
    import queue

    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    views = slot.bind({name: array.shape for name, array in inputs.items()})
    for name, view in views.items():
        np.copyto(view, inputs[name])
    slot.launch(ended.put)
    error = ended.get(timeout=60)
    if error is not None:
        raise error
    return {name: array.copy() for name, array in slot.outputs().items()}


@pytest.fixture
def built(tmp_path: Path) -> Callable[[onnx.ModelProto | bytes], Built]:
    return lambda model: Built(tmp_path, model)
