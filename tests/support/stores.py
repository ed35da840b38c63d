"""Object stores on loopback: moto, which knows conditional puts, and rclone, which checks credentials."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import obstore
from obstore.store import from_url

from tests.support.servers import free_port, until

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Store", "moto", "rclone"]

ACCESS_KEY, SECRET_KEY, BUCKET = "ACCESSKEYID00", "SECRETACCESSKEY00", "models"


class Store(NamedTuple):
    """`url` is the address of a prefix in it, `env` what a server needs to reach it."""

    url: str
    env: dict[str, str]
    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def _objects(self) -> ObjectStore:
        """The prefix, as a client that is no server of ours."""
        key, secret = self.env["AWS_ACCESS_KEY_ID"], self.env["AWS_SECRET_ACCESS_KEY"]
        return from_url(
            self.url, endpoint=self.endpoint, access_key_id=key, secret_access_key=secret, region="us-east-1",
            client_options={"allow_http": True},
        )  # fmt: skip

    def names(self) -> list[str]:
        """All keys below the prefix, relative to it."""
        return sorted(one["path"] for page in obstore.list(self._objects) for one in page)

    def put(self, key: str, data: bytes) -> None:
        """Write one object, whatever there is."""
        obstore.put(self._objects, key, data)

    def get(self, key: str) -> bytes:
        """One object."""
        return bytes(obstore.get(self._objects, key).bytes())

    def delete(self, *keys: str) -> None:
        """Remove objects."""
        for key in keys:
            obstore.delete(self._objects, key)


def _env(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }  # fmt: skip


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(port) or process.poll() is not None, "the store answers")
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
        return True
    return False


@contextlib.contextmanager
def moto(prefix: str = "production/a", port: int | None = None) -> Iterator[Store]:
    """Takes any credentials."""
    port = port or free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port) as process:
        assert httpx.put(f"{endpoint}/{BUCKET}").status_code == 200
        yield Store(f"s3://{BUCKET}/{prefix}", _env(endpoint), endpoint, process)


@contextlib.contextmanager
def rclone(folder: Path, prefix: str = "production/a") -> Iterator[Store]:
    """Objects are files below `folder`; conditional puts are taken for plain ones."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    (folder / BUCKET).mkdir(parents=True)
    command = [
        os.path.join(os.path.dirname(sys.executable), "rclone"), "serve", "s3", "--auth-key",
        f"{ACCESS_KEY},{SECRET_KEY}", "--addr", f"127.0.0.1:{port}", str(folder),
    ]  # fmt: skip
    with _running(command, port) as process:
        yield Store(f"s3://{BUCKET}/{prefix}", _env(endpoint), endpoint, process)
