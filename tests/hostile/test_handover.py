"""A compiler that was taken over: it writes only its own folder, and nothing but a whole plan is taken from there."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app import plans as plans_module
from app.builds.executor import run_build
from app.plans import Plans
from app.settings import Settings
from engines.errors import EngineError, PlanInvalid
from engines.manifest import BatchProof, EngineFile, Manifest, Source, encode
from engines.repository import PlanCache
from engines.request import BuildRequest
from engines.sandbox import landlock
from engines.signature import KEY_FILE, key_in
from engines.tensor import TensorSpec
from tests.support.servers import ROOT

KEY, OTHER = "k" * 32, "o" * 32
BLOB = b"engine" * 1000
HEAD = """
import json, os, sys
out, source = sys.argv[sys.argv.index("--out") + 1], sys.argv[1]
cache = os.path.dirname(out)
print(json.dumps({"stage": "read"}), flush=True)
seen = {}
def attempt(name, work):
    try:
        work()
        seen[name] = "done"
    except OSError as error:
        seen[name] = type(error).__name__
"""
TELL = "\nprint(json.dumps({'error': json.dumps(seen)}), flush=True); sys.exit(3)"


def manifest(key: str = KEY, blob: bytes = BLOB, file: str = "engine.blob") -> Manifest:
    return Manifest(
        key=key, source=Source("model.onnx", "0" * 64, 1),
        engine=EngineFile(file, hashlib.sha256(blob).hexdigest(), len(blob)), target="openvino", precision="fp32",
        inputs=(TensorSpec("x", "FP32", (-1, 4)),), outputs=(TensorSpec("y", "FP32", (-1, 4)),),
        proof=BatchProof(batchable=False), streams=1, threads=1, stream_timings=(), tools={}, hardware="",
        created="now", build_s=0.0, sample_shapes={"x": (1, 4)},
    )  # fmt: skip


class Place:
    """A server's cache with the plan of another model in it, and a model to compile."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = folder / "repository"
        self.cache = PlanCache(self.repository / ".cache")
        self.cache.store(manifest(OTHER), BLOB)
        key_in(self.cache.folder)  # as the first server has left it
        model = self.repository / "m" / "1" / "model.onnx"
        model.parent.mkdir(parents=True)
        model.write_bytes(b"x")
        self.before = self.files()
        self.request, self._monkeypatch = BuildRequest(model), monkeypatch

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.repository.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.repository)): path.read_bytes() for path in found}

    def compile(self, script: str) -> str:
        """Let the server run this as its compiler; what it says."""
        hostile = functools.partial(run_build, command=[sys.executable, "-c", HEAD + script])
        self._monkeypatch.setattr(plans_module, "run_build", hostile)

        async def make() -> None:
            await Plans(Settings(repository=self.repository)).make(self.request, lambda reason: None)

        with pytest.raises(EngineError) as refused:
            asyncio.run(make())
        assert self.files() == self.before, "nothing was changed, and nothing is left"
        assert {path.name for path in self.cache.folder.iterdir()} == {OTHER, KEY_FILE}
        return str(refused.value)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    return Place(tmp_path, monkeypatch)


def test_it_cannot_replace_the_plan_of_another_model(place: Place) -> None:
    said = place.compile(
        f"other = os.path.join(cache, {OTHER!r})\n"
        "attempt('change', lambda: open(other + '/engine.blob', 'r+b').write(b'evil'))\n"
        "attempt('remove', lambda: os.unlink(other + '/manifest.json'))\n"
        "attempt('move', lambda: os.rename(out, other))\n"
        "attempt('swap', lambda: os.rename(other, out + '/other'))\n"
        "attempt('add', lambda: os.mkdir(os.path.join(cache, 'n' * 32)))\n"
        "attempt('link', lambda: os.link(other + '/engine.blob', out + '/engine.blob'))\n"
        "attempt('read', lambda: open(other + '/engine.blob', 'rb').read())" + TELL
    )
    for name in ("change", "remove", "move", "swap", "add", "link", "read"):
        assert f'"{name}": "' in said
    assert "done" not in said


def test_it_reads_nothing_of_the_checkout_but_its_own_package(place: Place) -> None:
    script = "import engines.errors\n"
    for name in ("pyproject.toml", "app/settings.py", "tests/conftest.py", "model_repo/letter_mlp/1/model.onnx"):
        assert (ROOT / name).is_file()
        script += f"attempt({name!r}, lambda: open({str(ROOT / name)!r}).read())\n"
    script += f"attempt('listing', lambda: os.listdir({str(ROOT)!r}))\n"
    said = place.compile(script + TELL)
    assert '"pyproject.toml": "PermissionError"' in said
    assert '"listing": "PermissionError"' in said
    assert "done" not in said


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("", "the compile left no engine.blob"),
        ("open(out + '/engine.blob', 'wb').write(b'x')", "the compile left no manifest.json"),
        ("os.symlink('/etc/passwd', out + '/engine.blob')", "left engine.blob, and it is no plain file"),
        ("os.mkfifo(out + '/manifest.json')", "left manifest.json, and it is no plain file"),
        ("os.mkdir(out + '/engine.blob')", "left engine.blob, and it is no plain file"),
        ("open(out + '/..x', 'wb')", "the compile left '..x'; expected engine.blob, manifest.json"),
        ("open(out + '/a', 'wb'); os.link(out + '/a', out + '/manifest.json'); os.unlink(out + '/a');"
         " os.link(out + '/manifest.json', out + '/report.json')", "and it is no plain file"),
        ("open(out + '/manifest.json', 'wb').truncate(2**25)", "expected at most 16777216"),
        ("[open(out + '/' + name, 'wb').write(b'{}') for name in ('engine.blob', 'manifest.json')]",
         "manifest is not readable"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_not_taken(script: str, reason: str, place: Place) -> None:
    end = f"\nprint(json.dumps({{'key': {KEY!r}}}), flush=True)"
    assert reason in place.compile(script + end)


def leave(folder: Path, found: Manifest, blob: bytes = BLOB) -> None:
    (folder / "engine.blob").write_bytes(blob)
    (folder / "manifest.json").write_bytes(encode(found))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "of another key": (
        lambda folder: leave(folder, manifest(OTHER)),
        "of key oooooooooooo, expected kkkkkkkkkkkk",
    ),
    "another engine": (lambda folder: leave(folder, manifest(), b"x" * len(BLOB)), "not the one in its manifest"),
    "another size": (lambda folder: leave(folder, manifest(), BLOB + b"x"), "not the one in its manifest"),
    "another file": (lambda folder: leave(folder, manifest(file="../x")), "not the one in its manifest"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_that_is_not_what_it_says_is_not_taken(name: str, tmp_path: Path) -> None:
    fill, reason = WRONG[name]
    cache = PlanCache(tmp_path)
    cache.store(manifest(OTHER), BLOB)
    with cache.handover(KEY) as folder:
        fill(folder)
        with pytest.raises(PlanInvalid, match=reason):
            cache.adopt(folder, KEY)
    assert {path.name for path in tmp_path.iterdir()} == {OTHER}
    assert cache.manifest(OTHER) is not None


def test_a_whole_plan_is_taken_with_its_report_and_the_first_one_stays(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    for blob in (BLOB, b"another"):
        with cache.handover(KEY) as folder:
            leave(folder, manifest(blob=blob), blob)
            (folder / "report.json").write_bytes(b"{}")
            os.chmod(folder / "engine.blob", 0o4777)
            assert cache.adopt(folder, KEY).engine.sha256 == hashlib.sha256(BLOB).hexdigest()
    assert {path.name: path.stat().st_mode & 0o7777 for path in cache.entry(KEY).iterdir()} == dict.fromkeys(
        ("engine.blob", "manifest.json", "report.json"), 0o644
    )
    assert [path.name for path in tmp_path.iterdir()] == [KEY]
