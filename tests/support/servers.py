"""A real server in a process of its own, on a free loopback port, ended by its id."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

__all__ = ["ADMIN", "FRONT_ENDS", "KNOWN_PLANS", "ON_GPU", "ROOT", "TOKEN", "Server", "free_port", "running", "until"]

ROOT = Path(__file__).parent.parent.parent
TOKEN = "open-sesame"
"""Of every server that a test starts, unless it chooses another."""
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


ON_GPU = os.environ.get("TESTS_ON_GPU", "")
"""Whether servers run what they can on a simulated GPU."""
FRONT_ENDS = int(os.environ.get("BITSERVE_FRONT_ENDS", "1"))
"""Of each server, unless a test chooses."""
KNOWN_PLANS = "TESTS_KNOWN_PLANS"
"""A variable, where suites are run once more: the folder of what servers have compiled in this run of tests."""


def _module(*, on_gpu: bool) -> str:
    if on_gpu:
        return "tests.simulated.serve"
    return "tests.support.known_plans" if KNOWN_PLANS in os.environ else "app"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(met: Callable[[], Any], what: str, timeout_s: float = 60.0, every_s: float = 0.02) -> Any:
    """Poll a condition of the outside world; its value, or AssertionError naming what did not come to pass."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = met()
        if value:
            return value
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)


class Server:
    """`url`, `port` (chosen by the server), `process`; stderr is kept in `log`. A variable that is None is unset."""

    def __init__(
        self, repository: Path, *flags: str, env: Mapping[str, str | None] | None = None, python: Path | None = None,
        on_gpu: bool = bool(ON_GPU),
    ) -> None:  # fmt: skip
        """`on_gpu`: on a simulated one, what can."""
        module = _module(on_gpu=on_gpu) if python is None else "app"
        command = [str(python or sys.executable), "-m", module, "serve", "--repository", str(repository), "--port", "0"]
        # another Python has another install: it must not find these sources where it starts
        self._start(repository, [*command, *flags], {**os.environ, **(env or {})}, repository if python else ROOT)
        until(lambda: self._announced() or self.process.poll() is not None, "server listening")
        port = self._announced()
        assert port, f"the server ended with {self.process.returncode}: {self.log[-5:]}"
        self._at(port)

    def _start(self, repository: Path, command: list[str], env: Mapping[str, str | None], cwd: Path = ROOT) -> None:
        self.repository = repository
        env = {key: value for key, value in {"BITSERVE_ADMIN_TOKEN": TOKEN, **env}.items() if value is not None}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=cwd, env=env)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _at(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def _announced(self) -> int:
        """The port in the log, 0 while it is not there."""
        found = (re.search(r"running on http://[\d.]+:(\d+)", line) for line in list(self.log))
        return next((int(match[1]) for match in found if match), 0)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode("utf-8", "replace").rstrip())

    def log_events(self) -> list[dict[str, Any]]:
        """The log lines that are JSON."""
        return [json.loads(line) for line in list(self.log) if line.startswith("{")]

    def alive(self) -> bool:  # no certificates, here and below: to read them takes longer than a call
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/live", timeout=5, verify=False).status_code == 200
        return False

    def wait_live(self) -> None:
        until(lambda: self.alive() or self.process.poll() is not None, "server live")
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}: {self.log[-5:]}"

    def index(self) -> dict[tuple[str, str], dict[str, str]]:
        """The repository index by (model, version)."""
        answer = httpx.post(f"{self.url}/v2/repository/index", timeout=10, verify=False)
        assert answer.status_code == 200, answer.text
        entries = answer.json()
        for entry in entries if ON_GPU else ():  # a note beside those that tests are about
            entry["reason"] = re.sub(r"(; )?the CPU answers: .*", "", entry["reason"])
        return {(entry["name"], entry["version"]): entry for entry in entries}

    def state(self, model: str, version: int = 1) -> str:
        return self.index().get((model, str(version)), {}).get("state", "")

    def wait_ready(self, *models: str) -> None:
        """Until every named model (else every model of the index) is past loading; all must be READY."""

        def settled() -> bool:
            index = self.index()
            names = models or tuple({model for model, _ in index})
            found = [entry for (model, _), entry in index.items() if model in names]
            return len({e["name"] for e in found}) == len(set(names)) and all(e["state"] != "LOADING" for e in found)

        self.wait_live()
        until(settled, "models past loading", timeout_s=120)
        index = self.index()
        for (model, _), entry in index.items():
            if model in models or not models:
                assert entry["state"] == "READY", entry

    def infer(self, model: str, inputs: dict[str, Any], **keys: Any) -> httpx.Response:
        """A JSON inference call; `inputs` maps names to (datatype, array-like)."""
        import numpy as np

        body: dict[str, Any] = {"inputs": [], **keys}
        for name, (datatype, values) in inputs.items():
            array = np.asarray(values)
            body["inputs"].append(
                {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
            )
        return httpx.post(f"{self.url}/v2/models/{model}/infer", json=body, timeout=60, verify=False)

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
            broken = [line for line in list(self.log) if line.startswith("SIMULATED GPU")]
            assert not broken, broken
            return code
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join(5)
            assert self.process.stderr is not None
            if not self._reader.is_alive():  # else something that the server left holds the pipe; closing would wait
                self.process.stderr.close()


@contextlib.contextmanager
def running(
    repository: Path, *flags: str, env: Mapping[str, str | None] | None = None, python: Path | None = None,
    on_gpu: bool = bool(ON_GPU),
) -> Iterator[Server]:  # fmt: skip
    """A live server; ended however the test ends."""
    server = Server(repository, *flags, env=env, python=python, on_gpu=on_gpu)
    try:
        server.wait_live()
        yield server
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.stop()
