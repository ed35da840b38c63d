"""What a server says of the model that is to be driven: where it is, what it takes and gives, whose rows lie where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from app.bench.driver import Address
from app.bench.errors import BenchFailed
from engines.tensor import BY_NAME

__all__ = ["Server", "Target", "Tensor", "opened"]

_TIMEOUT_S = 10.0
_HTTP_PORT = 80
_LONGEST_ERROR = 300


@dataclass(frozen=True)
class Tensor:
    """An input or output: `shape` is whole, -1 where requests differ; `has_rows` where the first size counts rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    has_rows: bool

    def shape_of(self, rows: int) -> tuple[int, ...]:
        """With the rows of a request."""
        return (rows, *self.shape[1:]) if self.has_rows else self.shape


@dataclass(frozen=True)
class Target:
    """`path` is of the model, with its version; `server` what serves it, as it calls itself."""

    model: str
    version: str
    path: str
    server: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: dict[str, Any]

    def by_name(self, name: str) -> Tensor:
        """One of its inputs."""
        return next(tensor for tensor in self.inputs if tensor.name == name)


class Server:
    """Questions beside the load. BenchFailed where there is no answer, with what to do."""

    def __init__(self, url: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.url, self.headers = url.rstrip("/"), list(headers)
        self.address, self.host, self.prefix = _parts(self.url)

    def get(self, path: str) -> tuple[int, Any]:
        """Status, and the JSON of the body (None where it is none). BenchFailed where nothing answers."""
        import httpx

        try:
            answer = httpx.get(self.url + path, headers=self.headers, timeout=_TIMEOUT_S, verify=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BenchFailed(
                f"no answer from {self.url}: {error or type(error).__name__}; is the server running? "
                "start it with: bitserve serve, or name another with --url"
            ) from error
        try:
            return answer.status_code, json.loads(answer.content)
        except ValueError:
            return answer.status_code, None

    def models(self) -> list[str]:
        """Names in its repository index; none where it has no index."""
        import httpx

        try:
            answer = httpx.post(
                f"{self.url}/v2/repository/index",
                headers=self.headers,
                timeout=_TIMEOUT_S,
                verify=False,
            )
            return sorted({str(entry["name"]) for entry in answer.json() if entry.get("state", "READY") == "READY"})
        except (httpx.HTTPError, ValueError, TypeError, KeyError, AttributeError):
            return []


def opened(server: Server, model: str, version: str) -> Target:
    """What is driven. Raises BenchFailed where the model is unknown or not described."""
    path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{version}" if version else "")
    status, metadata = server.get(path)
    if status != 200:
        raise BenchFailed(_refused(server, model, status, metadata))
    try:
        shapes = [(t["name"], t["datatype"], tuple(map(int, t["shape"]))) for t in metadata["inputs"]]
        gives = [(t["name"], t["datatype"], tuple(map(int, t["shape"]))) for t in metadata["outputs"]]
        newest = max((str(number) for number in metadata.get("versions") or []), key=_number, default="")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BenchFailed(f"{server.url}{path} does not describe a model; does it speak the protocol v2?") from error
    unknown = [kind for _, kind, _ in [*shapes, *gives] if kind not in BY_NAME]
    if unknown:
        raise BenchFailed(f"{model!r} has tensors of {unknown[0]}; expected one of {', '.join(BY_NAME)}")
    batched = _is_batched(server, path, [shape for _, _, shape in shapes])
    about = server.get("/v2")[1]
    named = f"{about.get('name', 'a server')} {about.get('version', '')}".strip() if isinstance(about, dict) else ""

    def tensors(found: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
        return tuple(Tensor(n, kind, shape, batched and shape[:1] == (-1,)) for n, kind, shape in found)

    return Target(
        model, version or newest, server.prefix + path, named or "a server that does not say its name",
        tensors(shapes), tensors(gives), metadata,
    )  # fmt: skip


def _is_batched(server: Server, path: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """As its configuration says; a server without one (not Triton's kind) by its shapes alone."""
    if not all(shape[:1] == (-1,) for shape in shapes):
        return False
    status, config = server.get(f"{path}/config")
    if status != 200 or not isinstance(config, Mapping):
        return True
    return bool(config.get("max_batch_size")) or "max_batch_size" not in config


def _refused(server: Server, model: str, status: int, said: Any) -> str:
    words = str(said["error"])[:_LONGEST_ERROR] if isinstance(said, Mapping) and said.get("error") else ""
    if not words or words == "Not Found":
        words = f"{server.url} answered {status} when asked for the model {model!r}"
    there = [name for name in server.models() if name != model] if status in (400, 404) else []
    return f"{words}; it serves {', '.join(there)}" if there else f"{words}; see bitserve models --url {server.url}"


def _parts(url: str) -> tuple[Address, str, str]:
    """Where to connect, the Host header, and the path before /v2."""
    example = "expected http://HOST:PORT, such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        port = parts.port or _HTTP_PORT
    except ValueError as error:
        raise BenchFailed(f"--url {url}: {error}; {example}") from error
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.username:
        raise BenchFailed(f"--url {url}: {example}")
    return Address(parts.hostname, port), parts.netloc, parts.path


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else -1
