"""Cached plans: what is corrupt, truncated, foreign or stale is rebuilt and logged, never trusted. Needs OpenVINO."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from app.plans import Plans
from app.serving.limits import ModelOptions
from app.settings import Settings
from engines import repository
from engines.errors import EngineFailed, PlanInvalid
from engines.manifest import Manifest, decode, encode
from engines.repository import MANIFEST_FILE, PlanCache
from engines.request import BuildRequest
from engines.runtime.openvino import load_session
from tests.engines.conftest import run_slot
from tests.support.onnx_models import linear, place
from tests.support.plans import compile_into

THREADS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two models and the plans of both; copied by each test."""
    base = tmp_path_factory.mktemp("compiled")
    for name, scale in (("m", 1.0), ("other", 2.0)):
        compile_into(PlanCache(base / ".cache"), place(base, name, linear(scale=scale)))
    return base


class Shelf:
    """One test's copy of the repository, with the plan of `m` and that of `other`."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(repository=folder)
        self.source, self.cache = folder / "m/1/model.onnx", PlanCache(folder / ".cache")
        self.request = BuildRequest(self.source)
        self.key, self.other = (
            repository.plan_key(repository.file_sha256(folder / name / "1/model.onnx")) for name in ("m", "other")
        )

    @property
    def folder(self) -> Path:
        return self.cache.entry(self.key)

    @property
    def manifest(self) -> Manifest:
        found = self.cache.manifest(self.key)
        assert found is not None
        return found

    def rewrite(self, **changes: object) -> None:
        """Change the manifest as someone would who knows its format (and seals it)."""
        data = encode(msgspec.structs.replace(self.manifest, **changes))
        (self.folder / MANIFEST_FILE).write_bytes(data)


@pytest.fixture
def shelf(compiled: Path, tmp_path: Path) -> Shelf:
    shutil.copytree(compiled, tmp_path / "r")
    return Shelf(tmp_path / "r")


def flip_blob(shelf: Shelf) -> None:
    blob = bytearray((shelf.folder / "engine.blob").read_bytes())
    blob[len(blob) // 2] ^= 0x10
    (shelf.folder / "engine.blob").write_bytes(blob)


def truncate_blob(shelf: Shelf) -> None:
    blob = (shelf.folder / "engine.blob").read_bytes()
    (shelf.folder / "engine.blob").write_bytes(blob[: len(blob) // 2])


def empty_blob(shelf: Shelf) -> None:
    (shelf.folder / "engine.blob").write_bytes(b"")


def no_blob(shelf: Shelf) -> None:
    (shelf.folder / "engine.blob").unlink()


def foreign_plan(shelf: Shelf) -> None:
    shutil.rmtree(shelf.folder)
    shutil.copytree(shelf.cache.entry(shelf.other), shelf.folder)


def foreign_blob(shelf: Shelf) -> None:
    shutil.copy(shelf.cache.entry(shelf.other) / "engine.blob", shelf.folder / "engine.blob")


def no_manifest(shelf: Shelf) -> None:
    (shelf.folder / MANIFEST_FILE).unlink()


def garbage_manifest(shelf: Shelf) -> None:
    (shelf.folder / MANIFEST_FILE).write_bytes(b"\xff\xfe{")


def nested_manifest(shelf: Shelf) -> None:
    (shelf.folder / MANIFEST_FILE).write_bytes(b"[" * 100_000)


def flipped_manifest(shelf: Shelf) -> None:
    """One digit: the batch axis of a tensor, which would be answered wrongly without a word."""
    text = (shelf.folder / MANIFEST_FILE).read_text()
    assert '"batch_axis": 0' in text
    (shelf.folder / MANIFEST_FILE).write_text(text.replace('"batch_axis": 0', '"batch_axis": 1', 1))


def old_format(shelf: Shelf) -> None:
    shelf.rewrite(format=0)


def file_in_its_place(shelf: Shelf) -> None:
    shutil.rmtree(shelf.folder)
    shelf.folder.write_bytes(b"")


DAMAGES: dict[Callable[[Shelf], None], str] = {
    flip_blob: "has sha256",
    truncate_blob: "has sha256",
    empty_blob: "engine.blob",
    no_blob: "cannot be read",
    foreign_plan: "belongs to key",
    foreign_blob: "has sha256",
    no_manifest: "has no manifest",
    garbage_manifest: "not readable",
    nested_manifest: "not readable",
    flipped_manifest: "does not match its own seal",
    old_format: "has format 0, expected 1",
    file_in_its_place: "cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_plan_is_not_trusted(damage: Callable[[Shelf], None], shelf: Shelf) -> None:
    damage(shelf)

    def use() -> None:
        manifest = shelf.cache.manifest(shelf.key)
        assert manifest is not None
        load_session(shelf.folder, manifest)

    with pytest.raises(PlanInvalid, match=DAMAGES[damage]):
        use()


@pytest.mark.parametrize("damage", [flip_blob, foreign_plan, flipped_manifest, no_blob], ids=lambda d: d.__name__)
def test_a_damaged_plan_is_compiled_again_and_said(
    damage: Callable[[Shelf], None], shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    damage(shelf)
    said: list[str] = []

    async def serve() -> np.ndarray:
        plans = Plans(shelf.settings)
        manifest = await plans.find(shelf.request) or await plans.make(shelf.request, said.append)
        manifest, session = await plans.open(shelf.request, manifest, ModelOptions(), said.append)
        assert manifest.key == shelf.key
        try:
            return run_slot(session.slots[0], {"x": np.ones((3, 16), np.float32)})["y"]
        finally:
            session.close()

    with caplog.at_level(logging.WARNING):
        answer = asyncio.run(serve())
    np.testing.assert_allclose(answer, np.tile([1.75, 2.0, 2.25, 2.5], (3, 1)), rtol=1e-6)
    assert said == ["compiling"]
    assert "was not trusted and will be compiled again" in caplog.text
    assert DAMAGES[damage] in caplog.text
    assert shelf.manifest.engine.sha256 == repository.file_sha256(shelf.folder / "engine.blob")


def test_a_whole_plan_is_used_as_it_is(shelf: Shelf) -> None:
    before = (shelf.folder / MANIFEST_FILE).stat().st_mtime_ns
    assert asyncio.run(Plans(shelf.settings).find(shelf.request)) == shelf.manifest
    assert (shelf.folder / MANIFEST_FILE).stat().st_mtime_ns == before


def test_another_tool_or_another_machine_needs_another_plan(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    find = lambda: asyncio.run(Plans(shelf.settings).find(shelf.request))  # noqa: E731
    assert find() is not None
    with monkeypatch.context() as patch:
        patch.setattr(repository, "tool_versions", lambda: {"openvino": "0.0.1"})
        assert find() is None
    with monkeypatch.context() as patch:
        patch.setattr(repository, "cpu_fingerprint", lambda threads: "x86_64-000000000000-64t")
        assert find() is None
    shelf.source.write_bytes(linear(scale=3).SerializeToString())
    assert find() is None
    assert shelf.cache.manifest(shelf.key) is not None, "plans of others are left alone"


@pytest.mark.parametrize("streams", [None, 1, 2])
def test_streams_are_passed_again_at_import(streams: int | None, shelf: Shelf) -> None:
    """A blob forgets its stream configuration; without it OpenVINO would choose its own."""
    session = load_session(shelf.folder, shelf.manifest, streams=streams)
    wanted = streams or shelf.manifest.streams
    try:
        assert int(session.setting("NUM_STREAMS")) == min(wanted, THREADS)
        assert int(session.setting("INFERENCE_NUM_THREADS")) == max(shelf.manifest.threads, wanted)
        assert "float" in str(session.setting("INFERENCE_PRECISION_HINT"))
        assert len(session.slots) == wanted
        assert session.memory_bytes == shelf.manifest.engine.size_bytes
    finally:
        session.close()


@pytest.mark.parametrize(
    ("streams", "instances", "wanted"),
    [(None, 3, (3, 3, 1)), (1, 2, (1, 2, 1)), (2, 1, (2, 1, 1)), (1, None, (1, 1, 2))],
)
def test_batches_in_flight_may_be_other_than_streams(
    streams: int | None, instances: int | None, wanted: tuple[int, int, int], tmp_path: Path
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(linear().SerializeToString())
    cache = PlanCache(tmp_path / "cache")
    manifest = compile_into(cache, source, threads=2)
    session = load_session(cache.entry(manifest.key), manifest, streams=streams, instances=instances)
    try:
        made = int(session.setting("NUM_STREAMS"))
        assert (made, len(session.slots), session.threads_per_batch) == (min(wanted[0], THREADS), *wanted[1:])
        for slot in session.slots:
            assert run_slot(slot, {"x": np.ones((3, 16), np.float32)})["y"].shape == (3, 4)
    finally:
        session.close()


def test_the_engine_is_built_for_as_many_threads_as_it_may_use(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(linear().SerializeToString())
    cache = PlanCache(tmp_path / "cache")
    manifest = compile_into(cache, source, threads=1)
    assert (manifest.streams, manifest.threads) == (1, 1)
    assert manifest.key == repository.plan_key(manifest.source.sha256, threads=1)
    session = load_session(cache.entry(manifest.key), manifest)
    try:
        assert int(session.setting("INFERENCE_NUM_THREADS")) == 1
    finally:
        session.close()


def test_a_blob_without_the_manifest_s_tensors_is_not_trusted(shelf: Shelf) -> None:
    tensor = msgspec.structs.replace(shelf.manifest.outputs[0], name="z")
    shelf.rewrite(outputs=(tensor,))
    with pytest.raises(PlanInvalid, match="no tensor 'z'; it has"):
        load_session(shelf.folder, shelf.manifest)


def test_a_batch_that_the_engine_cannot_run_fails_and_the_next_one_runs(shelf: Shelf) -> None:
    session = load_session(shelf.folder, shelf.manifest)
    try:
        with pytest.raises((EngineFailed, RuntimeError)):
            run_slot(session.slots[0], {"x": np.ones((3, 7), np.float32)})
        assert run_slot(session.slots[0], {"x": np.ones((3, 16), np.float32)})["y"].shape == (3, 4)
    finally:
        session.close()


def test_manifests_survive_being_written_and_read(shelf: Shelf) -> None:
    manifest = shelf.manifest
    again = decode(encode(manifest))
    assert again == manifest
    assert again.seal
    with pytest.raises(PlanInvalid, match="not readable"):
        decode(encode(manifest)[:-30])
    with pytest.raises(PlanInvalid, match="seal"):
        decode(encode(manifest).replace(b'"streams": ', b'"streams": 1'))


def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    settings = Settings(repository=shelf.settings.repository, cache=tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(Plans(settings).find(shelf.request)) is None
    assert "cannot be written" in caplog.text
