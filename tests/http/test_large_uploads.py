"""Uploads as large as they may be, announced or not: neither memory nor disk is taken beyond the limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.servers import ADMIN, Server, running

pytestmark = pytest.mark.asks_no_engine
MIB = 2**20
BOUNDARY = "a-boundary"
HEADERS = {**ADMIN, "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


class Zeros:
    """A multipart body of that many MiB of zeros, a MiB at a time; httpx sends it in chunks, with no length."""

    def __init__(self, mebibytes: int, server: Server) -> None:
        self._pieces, self._process = mebibytes, psutil.Process(server.process.pid)
        self.rss_bytes = [self._process.memory_info().rss]

    def __iter__(self) -> Iterator[bytes]:
        yield HEAD
        piece = bytes(MIB)
        for number in range(self._pieces):
            yield piece
            if number % 8 == 0:
                self.rss_bytes.append(self._process.memory_info().rss)
        yield TAIL


def post(server: Server, body: Zeros) -> httpx.Response:
    url = f"{server.url}/v2/repository/models/zeros/compile"
    return httpx.post(url, content=iter(body), headers=HEADERS, timeout=120)


def nothing_is_kept(repository: Path) -> bool:
    return not list((repository / ".builds").iterdir())


def test_a_gibibyte_passes_through_without_staying_in_memory(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        post(server, Zeros(16, server))  # what the first upload loads, every later one has
        body = Zeros(1024, server)
        answer = post(server, body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["size_bytes"] == 1024 * MIB
        assert len(body.rss_bytes) > 100
        assert max(body.rss_bytes) - body.rss_bytes[0] < 64 * MIB
        httpx.delete(f"{server.url}{answer.headers['location']}", headers=ADMIN, timeout=60)


@pytest.mark.parametrize(
    ("flag", "status", "kept"),
    [("--max-upload-bytes", 413, "max_upload_bytes"), ("--max-builds-bytes", 503, "max_builds_bytes")],
)
def test_what_was_not_announced_is_counted_as_it_comes(flag: str, status: int, kept: str, tmp_path: Path) -> None:
    with running(tmp_path, flag, str(12 * MIB)) as server:
        answer = post(server, Zeros(20, server))
        assert (answer.status_code, f"see setting {kept}" in answer.text) == (status, True)
        assert nothing_is_kept(tmp_path)
        small = Zeros(9, server)
        assert post(server, small).status_code == 202, "there is room again"


def test_the_last_bytes_count_too(tmp_path: Path) -> None:
    with running(tmp_path, "--max-builds-bytes", str(MIB)) as server:
        answer = post(server, Zeros(2, server))
        assert (answer.status_code, "max_builds_bytes" in answer.text) == (503, True)
        assert nothing_is_kept(tmp_path)
