"""A private server of one version with a configuration of its own: a child on loopback, ended with the block."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

import app
from app.tune.errors import TuneFailed

__all__ = ["CHILD", "PrivateServer", "serving"]

CHILD = "app.tune.child"
"""The module that is a server of a trial."""
_LISTENING = re.compile(r"running on http://127\.0\.0\.1:(\d+)")
_START_S, _LOAD_S, _STOP_S = 60.0, 120.0, 15.0
_POLL_S = 0.05
_KEPT_LINES = 50
_OK = 200


class PrivateServer:
    """`port` is 0 until it listens. Its log is read all the time: a full pipe would stop it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.port = process, 0
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            text = line.decode("utf-8", "replace").strip()
            self._log.append(text)
            found = None if self.port else _LISTENING.search(text)
            if found is not None:
                self.port = int(found[1])
                self._listening.set()
        self._listening.set()  # it has ended

    def wait_ready(self, model: str, version: int) -> None:
        """Until the version answers. TuneFailed says why it does not."""
        self._listening.wait(_START_S)
        if not self.port:
            raise TuneFailed(f"a server for the trials did not start: {self._last_words()}")
        until_s = time.monotonic() + _LOAD_S
        while time.monotonic() < until_s:
            if self.process.poll() is not None:
                raise TuneFailed(f"a server for the trials ended: {self._last_words()}")
            state, reason = self._state(model, version)
            if state == "READY":
                return
            if state == "UNAVAILABLE":
                raise TuneFailed(f"{model!r} cannot be served: {reason}")
            time.sleep(_POLL_S)
        raise TuneFailed(f"{model!r} was not ready within {_LOAD_S:g} s")

    def _state(self, model: str, version: int) -> tuple[str, str]:
        for entry in self._ask("POST", "/v2/repository/index") or ():
            if (entry["name"], entry["version"]) == (model, str(version)):
                return entry["state"], entry["reason"]
        return "", ""

    def _ask(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body) if answer.status == _OK else None
        except (OSError, http.client.HTTPException, ValueError):
            return None  # it is about to listen, or has ended
        finally:
            connection.close()

    def cpu_s(self) -> float:
        """Processor time of the server so far, in seconds."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error as error:
            raise TuneFailed(f"a server for the trials ended: {self._last_words()}") from error
        return float(times.user + times.system)

    def _last_words(self) -> str:
        """The last log line that says something, without its fields."""
        for line in reversed(self._log):
            try:
                return str(json.loads(line)["message"])
            except (ValueError, KeyError, TypeError):
                if line:
                    return line
        return "it said nothing"

    def stop(self) -> None:
        """End it, by its id, whatever it does."""
        try:
            self.process.terminate()
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(_STOP_S)
            if self.process.stderr is not None and not self._reader.is_alive():
                self.process.stderr.close()


@contextlib.contextmanager
def serving(repository: Path, cache: Path, threads: int) -> Iterator[PrivateServer]:
    """A server of `repository` on a free port of loopback, with its settings from the environment otherwise.

    To be called in the main thread: the server ends when the thread that has started it does.
    """
    flags: Mapping[str, object] = {
        "repository": repository, "cache": cache, "host": "127.0.0.1", "port": 0, "threads": threads,
        "watch-s": 0, "drain-s": 0, "log-level": "info", "delay-scheduler": 0,
    }  # fmt: skip
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    packages = str(Path(app.__file__).parent.parent)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", CHILD, str(os.getpid()), "serve", *words, "--no-access-log"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": packages, "BITSERVE_ADMIN_TOKEN": secrets.token_urlsafe(16)},
        start_new_session=True,  # an interrupt from the terminal is this command's to handle
    )
    server = PrivateServer(child)
    try:
        yield server
    finally:
        server.stop()
