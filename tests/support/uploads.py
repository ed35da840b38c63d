"""Send a model to a server, and wait for its build."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import httpx
import numpy as np

from tests.support.servers import ADMIN, Server

__all__ = ["arrays", "build_of", "ended", "send"]

_PATIENCE_S = 120.0
_FINAL = ("succeeded", "failed", "cancelled")


def send(server: Server, model: str, data: bytes, spec: Any = None, **parts: Any) -> httpx.Response:
    """An upload; `spec` is text, or what becomes JSON; further parts are bytes or httpx's (file name, bytes)."""
    files = {"model": ("my model.onnx", data), **parts}
    text = {} if spec is None else {"spec": spec if isinstance(spec, str) else json.dumps(spec)}
    url = f"{server.url}/v2/repository/models/{model}/compile"
    return httpx.post(url, files=files, data=text, headers=ADMIN, timeout=60)


def build_of(server: Server, answer: httpx.Response) -> dict[str, Any]:
    """The status of the build that an upload was answered with."""
    found: dict[str, Any] = httpx.get(f"{server.url}{answer.headers['location']}", headers=ADMIN).json()
    return found


def ended(server: Server, answer: httpx.Response) -> dict[str, Any]:
    """The same, once the build has ended. Its events are followed: polling would take a core from the build."""
    assert answer.status_code == 202, answer.text
    events = f"{server.url}{answer.headers['location']}/events"
    deadline_s = time.monotonic() + _PATIENCE_S
    with httpx.stream("GET", events, headers=ADMIN, timeout=_PATIENCE_S) as stream:
        for _ in stream.iter_lines():
            assert time.monotonic() < deadline_s, f"the build has not ended within {_PATIENCE_S:g} s"
    status = build_of(server, answer)
    assert status["state"] in _FINAL, status
    return status


def arrays(**named: np.ndarray) -> bytes:
    """A .npz file."""
    file = io.BytesIO()
    np.savez(file, **named)
    return file.getvalue()
