"""A writer that is killed, a disk that is full, two writers at once: the old state or the whole new one, never half.

Needs Linux (fork, SIGKILL, RLIMIT_FSIZE). A process forks one child a point; the child counts the lines it executes and
the system calls that Python audits while it publishes, and kills itself at the N-th.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.errors import BadRepository
from engines.manifest import BatchProof, EngineFile, Manifest, Source
from engines.repository import MANIFEST_FILE, MODEL_FILE, PlanCache, publish_version, scan, staged_folder
from engines.tensor import TensorSpec

pytestmark = pytest.mark.asks_no_engine
ROOT = Path(__file__).parent.parent.parent
POINTS = 60
KEY = "k" * 32
BLOB = b"engine" * 3000
OLD, NEW = b"old " * 5000, b"new " * 5000
TRACED = ("repository.py", "manifest.py", "shutil.py", "tempfile.py", "pathlib.py", "contextlib.py")


def plan(key: str = KEY, blob: bytes = BLOB) -> Manifest:
    return Manifest(
        key=key,
        source=Source("model.onnx", "0" * 64, 1),
        engine=EngineFile("engine.blob", hashlib.sha256(blob).hexdigest(), len(blob)),
        target="openvino",
        precision="fp32",
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 4)),),
        proof=BatchProof(batchable=False),
        streams=1,
        threads=1,
        stream_timings=(),
        tools={},
        hardware="",
        created="now",
        build_s=0.0,
        sample_shapes={"x": (1, 4)},
    )


def publish(folder: Path) -> None:
    publish_version(folder, "m", 2, {MODEL_FILE: folder.parent / "new.onnx"}, b'{"whole": true}')


def store(folder: Path) -> None:
    PlanCache(folder).store(plan(), BLOB)


def replace(folder: Path) -> None:
    PlanCache(folder).discard(KEY)
    store(folder)


def old_version(repository: Path) -> None:
    folder = repository / "m" / "1"
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(OLD)


def old_plan(folder: Path) -> None:
    folder.mkdir()
    store(folder)


PREPARE: dict[str, Callable[[Path], None]] = {"publish": old_version, "store": Path.mkdir, "replace": old_plan}
WORK: dict[str, Callable[[Path], None]] = {"publish": publish, "store": store, "replace": replace}


def run_and_die(work: Callable[[Path], None], folder: Path, stop_at: int) -> int:
    """Do the work, killed at event `stop_at`; where that is never reached, the number of events."""
    count = 0
    armed = True

    def tick() -> None:
        nonlocal count
        if armed:
            count += 1
            if count == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def trace(frame: object, event: str, argument: object) -> object:
        if frame.f_code.co_filename.endswith(TRACED):  # type: ignore[attr-defined]
            tick()
            return trace
        return None

    sys.addaudithook(lambda *_: tick())
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        work(folder)
    finally:
        sys.settrace(None)
        armed = False
    return count


def zygote(name: str, base: Path) -> None:
    """Run the work in forked children: once to count its events, then killed at points spread over all of them."""

    def forked(folder: Path, stop_at: int) -> tuple[int, int]:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, str(run_and_die(WORK[name], folder, stop_at)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            answer = said.read()
        return os.waitstatus_to_exitcode(os.wait()[1]), int(answer or 0)

    for warm in ("first", "second"):  # what the first run imports, the second does not
        PREPARE[name](base / warm)
        total = forked(base / warm, 0)[1]
    points = sorted({1 + i * (total - 1) // (POINTS - 1) for i in range(POINTS)})
    codes = []
    for point in points:
        PREPARE[name](base / f"at-{point}")
        codes.append(forked(base / f"at-{point}", point)[0])
    print(json.dumps({"points": points, "codes": codes}))


def killed_everywhere(name: str, base: Path) -> list[Path]:
    """The folders in which the work was killed, one a point."""
    (base / "new.onnx").write_bytes(NEW)
    code = "import sys; from pathlib import Path; from tests.faults.test_publish import zygote; "
    code += "zygote(sys.argv[1], Path(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(base)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    killed = [point for point, code in zip(told["points"], told["codes"], strict=True) if code == -signal.SIGKILL]
    assert len(killed) >= 50, told
    return [base / f"at-{point}" for point in killed]


def test_a_publish_killed_anywhere_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    seen = set()
    for repository in killed_everywhere("publish", tmp_path):
        found = {files.version: files for files in scan(repository)["m"]}
        assert found[1].source.read_bytes() == OLD
        seen.add(frozenset(found))
        if 2 in found:
            assert found[2].has_manifest
            assert found[2].source.read_bytes() == NEW
            assert json.loads((found[2].folder / MANIFEST_FILE).read_bytes()) == {"whole": True}
        else:
            publish(repository)  # what was left behind is not in its way
            assert {files.version for files in scan(repository)["m"]} == {1, 2}
    assert seen == {frozenset({1}), frozenset({1, 2})}, "both sides of the rename were hit"


@pytest.mark.parametrize("name", ["store", "replace"])
def test_a_plan_killed_anywhere_is_whole_or_absent(name: str, tmp_path: Path) -> None:
    seen = set()
    for folder in killed_everywhere(name, tmp_path):
        cache = PlanCache(folder)
        manifest = cache.manifest(KEY)  # raises where there is half a plan
        seen.add(manifest is None)
        if manifest is None:
            store(folder)
            manifest = cache.manifest(KEY)
        assert manifest is not None
        assert (cache.entry(KEY) / manifest.engine.file).read_bytes() == BLOB
        left = [entry for entry in folder.iterdir() if entry.name.startswith(".")]
        assert cache.sweep(older_than_s=0, now_s=2**40) == len(left)
        assert [entry.name for entry in folder.iterdir()] == [KEY], "the sweep takes what was left, no more"
    assert seen == {True, False}


def test_the_sweep_spares_the_young_and_what_is_not_ours(tmp_path: Path) -> None:
    for name in (".ssh", ".discarded.x", f".{KEY}.y.staging", "plan", ".staging.notes"):
        (tmp_path / name).mkdir()
    cache = PlanCache(tmp_path)
    now_s = (tmp_path / "plan").stat().st_mtime
    assert cache.sweep(older_than_s=3600, now_s=now_s) == 0
    assert cache.sweep(older_than_s=3600, now_s=now_s + 3601) == 2
    assert {entry.name for entry in tmp_path.iterdir()} == {".ssh", "plan", ".staging.notes"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB where we may mount one; else files may not grow beyond 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode  # fmt: skip
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        yield folder
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_half_published(small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "large.onnx"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    source.write_bytes(b"x" * 200_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(OSError, match=r"No space left on device|File too large"):
        publish_version(small_disk, "m", 1, {MODEL_FILE: source}, b"{}")
    assert scan(small_disk) == {}
    with pytest.raises(OSError, match=r"No space left on device|File too large"):
        PlanCache(small_disk).store(plan(blob=b"y" * 200_000), b"y" * 200_000)
    assert PlanCache(small_disk).manifest(KEY) is None
    assert not [entry for entry in small_disk.rglob("*") if entry.is_file()], "the space is free again"
    source.write_bytes(b"x" * 1000)
    publish_version(small_disk, "m", 1, {MODEL_FILE: source}, b"{}")
    assert [files.version for files in scan(small_disk)["m"]] == [1]


def test_versions_are_immutable(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(OLD)
    final = publish_version(tmp_path / "r", "m", 1, {MODEL_FILE: source}, b"{}")
    source.write_bytes(NEW)
    with pytest.raises(BadRepository, match="model 'm' has a version 1 already; versions are immutable"):
        publish_version(tmp_path / "r", "m", 1, {MODEL_FILE: source}, b"{}")
    assert (final / MODEL_FILE).read_bytes() == OLD
    assert [entry.name for entry in (tmp_path / "r" / "m").iterdir()] == ["1"]
    with pytest.raises(BadRepository, match="path traversal"):
        publish_version(tmp_path / "r", "../m", 1, {MODEL_FILE: source}, b"{}")


def test_of_two_writers_of_one_key_the_first_wins_and_the_second_is_content(tmp_path: Path) -> None:
    """Both stage their files, then both rename: the barrier holds the first back until the second is ready too."""
    barrier = threading.Barrier(2, timeout=30)
    errors: list[BaseException] = []

    def write(mark: bytes) -> None:
        try:
            with staged_folder(tmp_path / KEY) as staging:
                (staging / "blob").write_bytes(mark * 1000)
                (staging / MANIFEST_FILE).write_bytes(mark)
                barrier.wait()
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(mark,)) for mark in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [type(error) for error in errors] == [FileExistsError]
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY]
    assert (tmp_path / KEY / "blob").read_bytes() == (tmp_path / KEY / MANIFEST_FILE).read_bytes() * 1000


def test_many_builders_of_one_key_leave_one_whole_plan(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.faults.test_publish import store; sys.stdin.read(1); "
        "store(Path(sys.argv[1]))"
    )
    builders = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE) for _ in range(4)
    ]
    for builder in builders:
        builder.communicate(b"x", timeout=60)
    assert [builder.returncode for builder in builders] == [0] * 4
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY]
    assert PlanCache(tmp_path).manifest(KEY) == PlanCache(tmp_path).manifest(KEY)
