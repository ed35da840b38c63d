"""The compiled model that the slots of a session share, imported anew after a run that raised.

OpenVINO 2026.4 does not undo what a run had changed when it raised: the nodes of that stream's graph that had taken the
new shapes keep them, without the kernels for them. A later run that brings the same shapes there raises too, or answers
with what an earlier one left. A new infer request runs on the same graph, and no run can be sent to a certain stream;
so the model is imported again. That takes some 10 to 200 ms, and no weights are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openvino as ov

from engines.errors import EngineFailed

__all__ = ["Engine", "first_line"]


class Engine:
    """Runs go side by side until one raises; then all stand still until the model is imported anew. Thread-safe.

    `forget` is called before, for every user of the engine to let go of its infer request.
    """

    def __init__(self, load: Callable[[], ov.CompiledModel]) -> None:
        self._load = load
        self._compiled: ov.CompiledModel | None = load()
        self._forget: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._running: list[ov.InferRequest] = []
        self._is_taken = self._is_spoilt = False

    @property
    def compiled(self) -> ov.CompiledModel:
        """Raises EngineFailed after an import that failed."""
        if self._compiled is None:
            raise EngineFailed("the engine is not there")
        return self._compiled

    def on_renewal(self, forget: Callable[[], None]) -> None:
        self._forget.append(forget)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nothing else runs, on an engine that nothing has spoilt. Raises EngineFailed where there is none."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            self._is_taken = True
            self._changed.wait_for(lambda: not self._running)
        try:
            self._renew()
            yield
            self._renew()
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()

    def recover(self) -> None:
        """Wait until the engine is whole. Raises EngineFailed where it cannot be."""
        with self.alone():
            pass

    def begin(self, request: Callable[[], ov.InferRequest]) -> ov.InferRequest | None:
        """Take part in the runs that go side by side; None where the engine is spoilt."""
        with self._changed:
            if self._is_taken:
                self._changed.wait_for(lambda: not self._is_taken)
            if self._is_spoilt:
                return None
            mine = request()
            self._running.append(mine)
            return mine

    def end(self, request: ov.InferRequest, *, raised: bool) -> bool:
        """Leave them again. Whether what it came to may be believed: no other run had spoilt the engine before.

        A stream ends one run before it begins the next, so what raised on it is known to its request by now, even if
        the thread that waits for that has not been told.
        """
        with self._changed:
            others = [other for other in self._running if other is not request]
        other_raised = bool(others) and any(map(_has_raised, others))
        with self._changed:
            believed = not (other_raised or self._is_spoilt)
            self._is_spoilt |= raised or other_raised
            self._running.remove(request)
            self._changed.notify_all()
            return believed

    def spoil(self) -> None:
        """Say that a run has raised that was made `alone`."""
        self._is_spoilt = True

    def _renew(self) -> None:
        if not self._is_spoilt:
            return
        for forget in self._forget:
            forget()
        self._compiled = None  # first: two of them would take the memory of two
        try:
            self._compiled = self._load()
        except Exception as error:
            raise EngineFailed(f"the engine cannot be imported again: {first_line(error)}") from error
        self._is_spoilt = False

    def setting(self, name: str) -> Any:
        """A property such as NUM_STREAMS, as the compiled model itself reports it."""
        return self.compiled.get_property(name)


def _has_raised(request: ov.InferRequest) -> bool:
    try:
        request.wait_for(0)
    except Exception:
        return True
    return False


def first_line(error: BaseException) -> str:
    """OpenVINO's message without its C++ source positions: the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said[-1] if said else next((line for line in lines if line), type(error).__name__))[:500]
