"""PyCUDA itself, and NVIDIA's bindings, over a stand-in for the driver's library: `python -m tests.gpu.over_pycuda
LIBRARY`, with the library's folder in LD_LIBRARY_PATH. All that the runtime asks of a driver is asked, and each kind of
error met.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import numpy as np
import pytest

from engines.errors import CaptureRefused, DeviceLost, EngineError, OutOfMemory
from engines.runtime.pycuda_driver import PyCudaDriver

_OUT_OF_MEMORY, _INVALID_VALUE, _ILLEGAL_ADDRESS, _LAUNCH_FAILED, _INVALIDATED = 2, 1, 700, 719, 901


class Standin:
    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL | os.RTLD_LAZY)
        self._library.standin_calls.restype = ctypes.c_char_p
        self._library.standin_held.restype = ctypes.c_long

    def fail(self, name: str, code: int, *, sticky: bool = False) -> None:
        self._library.standin_fail(name.encode(), code, int(sticky))

    def forget(self) -> None:
        self._library.standin_forget()

    def calls(self) -> list[str]:
        return str(self._library.standin_calls().decode()).split()

    def held(self) -> int:
        return int(self._library.standin_held())


def copies(driver: PyCudaDriver, standin: Standin) -> None:
    """There and back, by rows too; recorded, and played again with what is there then."""
    memory = driver.memory()
    assert (driver.current_device(), memory.total) == (0, 2**30)
    address, stream, event = driver.allocate(4096), driver.stream(), driver.event()
    assert driver.memory().free == memory.free - 4096
    sent, got = driver.pinned(4096), driver.pinned(4096)
    assert not sent.any()
    sent[:] = np.arange(4096) % 251
    driver.copy_in(address, sent, stream)
    driver.record(event, stream)
    driver.wait(stream, event)
    driver.copy_out(got, address, stream)
    driver.synchronize(event)
    np.testing.assert_array_equal(got, sent)
    driver.copy_in(address + 128, sent[:64], stream)
    driver.copy_out(got[:64], address + 128, stream)
    np.testing.assert_array_equal(got[:64], sent[:64])
    driver.begin_capture(stream)
    driver.copy_in(address, sent, stream)
    driver.copy_out(got, address, stream)
    graph = driver.end_capture(stream)
    sent[:] = 7
    driver.replay(graph, stream)
    assert (got == 7).all()
    driver.close_graph(graph)
    driver.close_event(event)
    driver.close_stream(stream)
    for array in (sent, got):
        driver.unpin(array)
    driver.free(address)
    assert standin.held() == 0


def errors(driver: PyCudaDriver, standin: Standin) -> None:
    """Memory, the device, a capture; and what is none of these."""
    address, stream, source = driver.allocate(16), driver.stream(), driver.pinned(16)
    with pytest.raises(OutOfMemory, match=r"2147483648 bytes of the GPU, \d+ of 1073741824 are free"):
        driver.allocate(2**31)
    for code in (_ILLEGAL_ADDRESS, _LAUNCH_FAILED):
        standin.fail("cuMemcpyHtoDAsync_v2", code, sticky=True)
        with pytest.raises(DeviceLost):
            driver.copy_in(address, source, stream)
        standin.forget()
    standin.fail("cuMemcpyHtoDAsync_v2", _INVALID_VALUE)
    with pytest.raises(EngineError) as raised:
        driver.copy_in(address, source, stream)
    assert type(raised.value) is EngineError
    for name, code in (("cuGraphInstantiateWithFlags", _OUT_OF_MEMORY), ("cuStreamEndCapture", _INVALIDATED)):
        standin.fail(name, code)
        driver.begin_capture(stream)
        with pytest.raises(CaptureRefused):
            driver.end_capture(stream)
    driver.close_stream(stream)
    driver.unpin(source)
    driver.free(address)
    assert standin.held() == 0


def threads(driver: PyCudaDriver, standin: Standin) -> None:
    """Each has the device's context while it is attached, and no longer."""
    seen: list[object] = []

    def other() -> None:
        driver.attach()
        address = driver.allocate(16)
        seen.append(driver.current_device())
        driver.free(address)
        driver.detach()
        with pytest.raises(EngineError):
            driver.allocate(16)
        seen.append("none")

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [0, "none"]


def main(library: str) -> None:
    standin = Standin(library)
    sys.setdlopenflags(os.RTLD_LAZY)  # PyCUDA names more of the driver than is asked of it here
    driver = PyCudaDriver(0)
    driver.attach()
    for check in (copies, errors, threads):
        check(driver, standin)
    driver.detach()
    print("all asked")


if __name__ == "__main__":
    main(sys.argv[1])
