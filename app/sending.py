"""`bitserve compile --server`: a model is sent from disk, its build is followed to the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx

from app.builds.state import BuildState
from app.terminal import ask, fail, words_of
from engines.repository import CALIBRATION_FILE, MODEL_FILE, VALIDATION_FILE
from engines.request import BuildRequest
from engines.spec import Spec, encode_spec

__all__ = ["build_there"]

_PARTS = {"model": MODEL_FILE, "calibration": CALIBRATION_FILE, "validation": VALIDATION_FILE}
Show = Callable[[str, int], None]


def build_there(url: str, token: str, model: str, request: BuildRequest, spec: Spec, show: Show) -> tuple[Any, Any]:
    """Send, and wait until the version serves; the build's status, and the version's report or None.

    `show` is called with the stage and the percent. Ends the command with the reason where it does not come to that.
    """
    headers = httpx.Headers([(b"Authorization", f"Bearer {token}".encode())] if token else [])
    show("send", 0)
    try:
        location = _send(f"{url}/v2/repository/models/{quote(model, safe='')}/compile", headers, request, spec)
        _follow(url + location, headers, show)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no answer from {url}: {error or type(error).__name__}; is the server running?")
    status = ask("GET", url + location, headers=headers)
    if status["state"] != BuildState.SUCCEEDED:
        fail(status["error"] or f"the build is {status['state']}; follow it at {url}{location}")
    return status, _report(url, status["report"]) if status["report"] else None


def _send(url: str, headers: httpx.Headers, request: BuildRequest, spec: Spec) -> str:
    """The path of the build. The files are read as they go out, piece by piece."""
    given = request.files()
    with contextlib.ExitStack() as stack:
        files = {
            part: (given[name].name, stack.enter_context(given[name].open("rb")))
            for part, name in _PARTS.items()
            if name in given
        }
        data = {} if spec == Spec() else {"spec": encode_spec(spec).decode()}
        answer = httpx.post(url, headers=headers, files=files, data=data, timeout=httpx.Timeout(60, read=None))
    words_of(answer, url)
    location = answer.headers.get("location", "")
    if not location.startswith("/"):
        fail(f"{url} answered without the Location of a build; is it a bitserve server?")
    return str(location)


def _follow(url: str, headers: httpx.Headers, show: Show) -> None:
    """Show the build's events until the stream ends; it may be silent for as long as a stage takes."""
    timeout = httpx.Timeout(60, read=None)
    with httpx.stream("GET", f"{url}/events", headers=headers, timeout=timeout) as stream:
        for event in _events(stream.iter_lines()):
            show(event["stage"], event["percent"])


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _report(url: str, path: str) -> Any:
    answer = httpx.get(url + path, headers={"Accept": "application/json"}, timeout=60)
    return answer.json() if answer.is_success else None
