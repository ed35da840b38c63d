"""A disk that is full ends a build with a reason that names the folder, and leaves what is served."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.disk import naming_full_disk
from engines.errors import EngineError
from tests.support.onnx_models import linear, slow
from tests.support.servers import running
from tests.support.uploads import ended, send

pytestmark = pytest.mark.asks_no_engine
MIB = 2**20


def test_only_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^no space left in the cache$"), naming_full_disk("the cache"):
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(FileNotFoundError), naming_full_disk("the cache"):
        (tmp_path / "absent" / "file").write_bytes(b"x")


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("where", "full"), [("repository", "repository"), ("cache", "cache")])
def test_the_folder_that_has_no_room_is_named(where: str, full: str, small: Path, tmp_path: Path) -> None:
    folders = {"repository": tmp_path / "repository", "cache": tmp_path / "cache", where: small}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    with running(folders["repository"], "--cache", str(folders["cache"])) as server:
        good = ended(server, send(server, "good", linear(scale=3).SerializeToString()))
        assert good["state"] == "succeeded"
        large = slow(width=512, layers=2).SerializeToString()
        assert MIB < len(large) < 2.5 * MIB
        with (small / "filler").open("wb") as file:
            file.truncate(0)
            file.write(bytes(int(0.3 * MIB) if where == "repository" else int(1.5 * MIB)))
        done = ended(server, send(server, "large", large))
        assert done["state"] == "failed"
        assert done["error"].startswith("no space left in the ")
        assert full in done["error"]
        assert server.state("good") == "READY"
        (small / "filler").unlink()
        again = ended(server, send(server, "small", linear(scale=5).SerializeToString()))
        assert again["state"] == "succeeded", "there is room again"


def test_a_disk_without_a_byte_left_still_ends_the_build(small: Path, tmp_path: Path) -> None:
    with running(small, "--cache", str(tmp_path / "cache")) as server:
        sent = send(server, "m", slow(width=256, layers=4).SerializeToString())
        with pytest.raises(OSError, match="No space left"):
            fill(small / "filler")
        done = ended(server, sent)
        assert (done["state"], done["error"]) == ("failed", "no space left in the repository")
