"""The least that an ASGI application can do with a call: read its body, answer a constant.

`python bare.py PORT FOLDER`: the path `/NAME` is answered with the bytes of FOLDER/NAME. It imports nothing of this
project.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

ANSWERS: dict[str, tuple[bytes, list[tuple[bytes, bytes]]]] = {}


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Parts of a body are let go as they come."""
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    body, headers = ANSWERS[scope["path"]]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(port: int, folder: Path) -> None:
    for path in folder.iterdir():
        body = path.read_bytes()
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
        ANSWERS[f"/{path.name}"] = body, headers
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False,
        timeout_keep_alive=75, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
