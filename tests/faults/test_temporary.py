"""What a build has among the temporary files goes with it; what a killed server left goes at the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.temporary import own_folder, sweep_folders
from tests.support.onnx_models import slow
from tests.support.servers import Server, running, until
from tests.support.uploads import send


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this test, and of the servers it starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def builds(temporary: Path) -> list[Path]:
    return list(temporary.glob("bitserve-build-*"))


def test_a_killed_server_leaves_no_folder_for_ever(temporary: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    server = Server(repository)
    try:
        send(server, "slow", slow(width=256, layers=12).SerializeToString())
        (left,) = until(lambda: builds(temporary), "the build has its folder")
        first = psutil.Process(server.process.pid)
        assert int(left.name.split("-")[2]) in {one.pid for one in (first, *first.children())}
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert left.is_dir()
    finally:
        server.stop()
    with running(repository):
        assert not left.exists()


def test_only_what_has_no_owner_is_swept(temporary: Path) -> None:
    gone, alive = ended_process(), os.getppid()
    names = {
        f"bitserve-build-{gone}-abc": True, f"bitserve-page-{gone}-abc": True, f"bitserve-build-{alive}-abc": False,
        "bitserve-build-abc": False, f"bitserve-other-{gone}-abc": False, f"bitserve-build-{os.getpid()}-abc": True,
    }  # fmt: skip
    for name in names:
        (temporary / name / "work").mkdir(parents=True)
    (temporary / f"bitserve-build-{gone}-link").symlink_to(temporary / "bitserve-build-abc")
    with own_folder("build") as used:
        assert sweep_folders() == sum(names.values())
        assert used.is_dir()
    assert not used.exists()
    left = {path.name for path in temporary.iterdir()}
    assert left == {*(name for name, is_left in names.items() if not is_left), f"bitserve-build-{gone}-link"}


def test_a_folder_that_another_holds_is_spared_though_its_process_cannot_be_seen(temporary: Path) -> None:
    """As that of a server in another container is."""
    with own_folder("build") as used:
        unseen = used.rename(used.with_name(f"bitserve-build-{ended_process()}-abc"))
        assert sweep_folders() == 0
        assert unseen.is_dir()
