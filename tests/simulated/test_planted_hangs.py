"""Faults that are planted into how a GPU that hangs is found: what waits for one then waits for ever, or what does not
hang is lost.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import DeviceLost
from engines.runtime import flights
from engines.runtime.flights import Flights
from engines.runtime.tensorrt import TensorRtSession
from engines.runtime.tensorrt_instance import TensorRtInstance
from engines.runtime.watch import Watch
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.planting import plant
from tests.simulated.test_hangs import Ended, Watching, hangs_from, launched, session_on
from tests.support.servers import until

FAULTS: dict[str, tuple[type, str, str, str, str]] = {
    "what waits for room in the streams is not counted": (
        TensorRtInstance, "_enqueue", "self._flights.start(flight)", "pass", "a batch for full streams waits"),
    "what is in the streams is not counted": (
        Flights, "look", "if self._on_gpu:", "if not self._under_way:", "a batch waits"),
    "what a compiler was waited for is not counted again": (
        Flights, "elsewhere", "self._on_gpu.add(flight)", "pass", "a batch of TensorRT-RTX waits"),
    "a compiler is counted": (
        Flights, "elsewhere", "self._on_gpu.discard(flight)", "pass", "a compiler is counted"),
    "weights are waited for": (
        TensorRtSession, "_loaded", "watch is None", "True", "a load of weights waits"),
    "nobody looks at an instance that opens": (
        TensorRtSession, "_open", "watch.join(instance)", "pass", "a first batch waits"),
    "who opens an instance is not told": (
        TensorRtInstance, "lose", "self._begun.put(error)", "pass", "a first batch waits"),
    "one instance alone is told": (
        Watch, "_lose", "tuple(self._instances)", "tuple(self._instances)[:1]", "a batch waits"),
    "what is launched later is put into the streams": (
        Flights, "end_all", "self._over = error", "pass", "a later batch waits"),
    "it is closed while it hangs": (
        TensorRtSession, "close", "any(watch.hangs for watch in self._watches.values())", "False", "a close waits"),
    "an end is no sign of life": (
        Flights, "end", "self._looks = 0", "pass", "what goes on is counted"),
    "looks are counted while nothing is there": (
        Flights, "look", "self._looks = 0", "self._looks += 1", "what goes on is counted"),
}  # fmt: skip


def find(monkeypatch: pytest.MonkeyPatch, hang: Path, limit_s: float) -> list[str]:
    """`limit_s` is for what is to end at once; what does not waits for the GPU."""
    hanging = {
        "a batch": lambda: _batches(hang, limit_s),
        "a batch of TensorRT-RTX": lambda: _batches(hang, limit_s, "tensorrt-rtx"),
        "a batch for full streams": lambda: _full(hang, limit_s),
        "a load of weights": lambda: _loads(monkeypatch, hang, limit_s, trt.ICudaEngine),
        "a first batch": lambda: _loads(monkeypatch, hang, limit_s, trt.IExecutionContext),
    }
    monkeypatch.setattr(flights, "PATIENCE", 2)
    found = _counted()
    for what, of in hanging.items():
        missing, close = of()
        found += [f"{one or what} waits" for one in missing]
        hang.unlink(missing_ok=True)  # what waits goes on
        _returns(close, 20)
    return found


Found = tuple[list[str], Callable[[], Any]]
"""What waits, and how to give the rest back."""


def _batches(hang: Path, limit_s: float, target: str = "tensorrt") -> Found:
    """Of two instances on a GPU that hangs."""
    watch, ended = Watching(), queue.SimpleQueue[BaseException | None]()
    session = session_on(SimulatedGpu(Faults(slowest_s=0, hang_file=str(hang))), watch, [], target)
    hang.touch()
    watch.expect()
    for at in (0, 2):
        launched(session, at, ended)
    if not _ends(ended, limit_s, 2):
        return [""], session.close
    return [] if _returns(session.close, limit_s) else ["a close"], lambda: None


def _full(hang: Path, limit_s: float) -> Found:
    """One for streams that take no more, and one behind it."""
    faults, watch = Faults(slowest_s=0, hang_file=str(hang)), Watching()
    session, ended = session_on(SimulatedGpu(faults), watch, []), queue.SimpleQueue[BaseException | None]()
    faults.most_waiting = 1
    hang.touch()
    watch.expect()
    launched(session, 0, ended)
    if not _ends(ended, limit_s):
        return [""], session.close
    launched(session, 1, ended)
    return [] if _ends(ended, limit_s) else ["a later batch"], session.close


def _loads(monkeypatch: pytest.MonkeyPatch, hang: Path, limit_s: float, owner: type) -> Found:
    gpu, watch = SimulatedGpu(Faults(slowest_s=0, hang_file=str(hang))), Watching()
    with monkeypatch.context() as patched:
        hangs_from(patched, owner, "__init__", hang, watch)
        returned = _started(lambda: session_on(gpu, watch, []))
        until(lambda: hang.exists() or returned.is_set(), "it hangs")
        return [] if returned.wait(limit_s) else [""], lambda: returned.wait(20)


def _counted() -> list[str]:
    """Of a batch whose kernels are compiled, and of batches that end."""
    found, ended = [], queue.SimpleQueue[BaseException | None]()
    session = session_on(SimulatedGpu(Faults(slowest_s=0)), Watching(), [], "tensorrt-rtx")
    compiler, done = threading.Event(), threading.Event()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trt.IExecutionContext, "_specialize", lambda self: (compiler.set(), done.wait(10)))
        launched(session, 0, ended)
        assert compiler.wait(10)
        look = session._instances[0].look
        first = look()  # the watch looks, too
        found += ["a compiler is counted"] if [look() for _ in range(10)][-1] - first >= 8 else []  # half a look each
        done.set()
        assert ended.get(timeout=10) is None
    session.close()
    own = Flights()
    first, second = (own.begin(lambda error: None) for _ in range(2))
    assert first
    assert second
    for flight in (first, second):
        own.start(flight)
        own.look()
    own.end(first, None)
    goes_on = own.look() <= 1
    own.end(second, None)
    return found if goes_on and not own.look() else [*found, "what goes on is counted"]


def _ends(ended: Ended, limit_s: float, count: int = 1) -> bool:
    try:
        for _ in range(count):
            ended.get(timeout=limit_s)
    except queue.Empty:
        return False
    return True


def _returns(call: Callable[[], Any], limit_s: float) -> bool:
    """With an error, too."""
    return _started(call).wait(limit_s)


def _started(call: Callable[[], Any]) -> threading.Event:
    returned = threading.Event()

    def run() -> None:
        try:
            call()
        except DeviceLost:
            pass
        finally:
            returned.set()

    threading.Thread(target=run, daemon=True).start()
    return returned


def test_without_a_fault_nothing_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find(monkeypatch, tmp_path / "hang", 20) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str) -> None:
    *planted_fault, said = FAULTS[fault]
    plant(monkeypatch, *planted_fault)
    found = find(monkeypatch, tmp_path / "hang", 0.8)
    assert said in found, found
