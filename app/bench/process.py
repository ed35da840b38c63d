"""The process of the load, seen from the command: runs are ordered one at a time, and told as they go on."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import app
from app.bench.errors import BenchFailed
from app.bench.messages import LENGTH, Ended, Load, Order, Said, Setup, Stop, Told, decode_said, encode
from app.bench.seen import Seen

__all__ = ["LoadProcess", "load_process"]

_PIECE_BYTES = 1 << 20
_END_S = 5.0


class LoadProcess:
    """`run` yields after every message; what was seen is in `seen` then, and at the end `ended` is set."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: socket.socket) -> None:
        self._process, self._pipe = process, pipe
        self._buffer = bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self.seen, self.ended = Seen(), None

    seen: Seen
    ended: Ended | None

    def order(self, message: Order) -> None:
        try:
            self._pipe.sendall(encode(message))
        except OSError as error:
            raise BenchFailed(self._last_words()) from error

    def run(self, load: Load, wake_s: float = 0.1) -> Iterator[None]:
        """Goes on at least every `wake_s` seconds. Raises BenchFailed where the process ends or fails."""
        self.seen, self.ended = Seen(), None
        self.order(load)
        while self.ended is None:
            for message in self._received(wake_s):
                if isinstance(message, Told):
                    self.seen.add(message.increment)
                else:
                    self.ended = message
            yield
        if self.ended.failure:
            raise BenchFailed(f"the load ended: {self.ended.failure}")

    def stop(self) -> None:
        """The run under way is to end."""
        with contextlib.suppress(BenchFailed):
            self.order(Stop())

    def _received(self, wait_s: float) -> Iterator[Said]:
        if self._selector.select(wait_s):
            data = self._pipe.recv(_PIECE_BYTES)
            if not data:
                raise BenchFailed(self._last_words())
            self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            yield decode_said(bytes(self._buffer[LENGTH.size : end]))
            del self._buffer[:end]

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode("utf-8", "replace").split("\n") if self._process.poll() else []
        words = next((line for line in reversed(lines) if line.strip()), f"exit code {self._process.returncode}")
        return f"the process of the load ended: {words}"

    def close(self) -> None:
        """It ends when its socket does; if not, by its id."""
        self._selector.close()
        self._pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


@contextlib.contextmanager
def load_process(setup: Setup) -> Iterator[LoadProcess]:
    """Started, and ended with the block."""
    ours, its = socket.socketpair()
    with its:
        packages = str(Path(app.__file__).parent.parent)
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.bench.child", str(its.fileno())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[its.fileno()],
            env={**os.environ, "PYTHONPATH": packages},
            start_new_session=True,  # an interrupt from the terminal is the command's to handle
        )  # fmt: skip
    load = LoadProcess(child, ours)
    try:
        load.order(setup)
        yield load
    finally:
        load.close()
