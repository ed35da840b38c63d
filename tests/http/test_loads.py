"""Load calls against the watcher, against each other, and against the server's end. Needs a real server."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.models import ModelManager
from app.plans import Plans
from app.serving.device import Device
from app.serving.errors import Stopping
from app.serving.gateway import Gateway
from app.serving.registry import Registry
from app.settings import Settings
from tests.support.onnx_models import linear, place, slow
from tests.support.servers import ADMIN, Server, running, until

X: dict[str, Any] = {"x": ("FP32", [[1.0] * 16])}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its watcher never rests; each test has models of its own."""
    with running(tmp_path_factory.mktemp("repository"), "--watch-s", "0.003") as live:
        yield live


def call(server: Server, model: str, what: str = "load", **parameters: str) -> httpx.Response:
    body = {"parameters": parameters}
    return httpx.post(f"{server.url}/v2/repository/models/{model}/{what}", json=body, headers=ADMIN, timeout=120)


def bring(server: Server, model: str, files: dict[int, bytes], config: str = "{}") -> httpx.Response:
    brought = {f"file:{n}/model.onnx": base64.b64encode(data).decode() for n, data in files.items()}
    return call(server, model, config=config, **brought)


def scaled(scale: float) -> bytes:
    return linear(scale=scale).SerializeToString()


def scale_of(server: Server, model: str) -> float:
    """The scale of the `linear` model that answers."""
    answer = server.infer(model, X)
    assert answer.status_code == 200, answer.text
    return float(answer.json()["outputs"][0]["data"][0]) / 1.75


def listed(server: Server, model: str) -> dict[str, str]:
    return {version: entry["state"] for (name, version), entry in server.index().items() if name == model}


def test_the_watcher_keeps_out_of_load_calls(server: Server) -> None:
    place(server.repository, "watched", linear())
    server.wait_ready("watched")
    statuses: list[tuple[int, str]] = []
    stop = threading.Event()

    def infer() -> None:
        while not stop.is_set():
            answer = server.infer("watched", X)
            statuses.append((answer.status_code, answer.text[:200]))

    client = threading.Thread(target=infer)
    client.start()
    try:
        for number in range(12):
            loaded = bring(server, "watched", {2 + number % 3: scaled(2)})
            assert (loaded.status_code, loaded.text) == (200, "")
            assert scale_of(server, "watched") == pytest.approx(2)
            loaded = call(server, "watched")
            assert (loaded.status_code, loaded.text) == (200, "")
            assert scale_of(server, "watched") == pytest.approx(1)
    finally:
        stop.set()
        client.join()
    assert {status for status, _ in statuses} == {200}, [text for status, text in statuses if status != 200][:3]
    until(lambda: listed(server, "watched") == {"1": "READY"}, "only what is on disk")


def test_load_calls_for_one_model_take_turns(server: Server) -> None:
    data = [scaled(3), scaled(4)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: bring(server, "crowd", {1 + n % 2: data[n % 2]}), range(12)))
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "")] * 12
    assert scale_of(server, "crowd") in (pytest.approx(3), pytest.approx(4))


def test_a_failed_load_changes_nothing(server: Server) -> None:
    place(server.repository, "kept", linear())
    server.wait_ready("kept")
    everything = '{"versions": "all", "batching": {"max_batch_size": 4}}'
    assert bring(server, "kept", {5: scaled(5), 6: scaled(6)}, everything).status_code == 200
    for files in ({5: scaled(7), 8: b"garbage"}, {8: b"garbage"}):
        refused = bring(server, "kept", files, '{"versions": "all"}')
        assert (refused.status_code, "is not an ONNX model" in refused.text) == (400, True)
        assert listed(server, "kept") == {"5": "READY", "6": "READY"}
    place(server.repository, "kept", b"garbage")
    assert call(server, "kept").status_code == 400
    time.sleep(0.1)  # several looks of the watcher
    assert listed(server, "kept") == {"5": "READY", "6": "READY"}
    assert scale_of(server, "kept") == pytest.approx(6)
    config = httpx.get(f"{server.url}/v2/models/kept/config").json()
    assert config["max_batch_size"] == 4


def test_a_plain_load_of_what_is_not_on_disk_keeps_it_serving(server: Server) -> None:
    assert bring(server, "visitor", {1: scaled(8)}).status_code == 200
    refused = call(server, "visitor")
    assert (refused.status_code, "no such model" in refused.text) == (400, True)
    time.sleep(0.1)
    assert scale_of(server, "visitor") == pytest.approx(8)


def test_what_was_replaced_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "r").mkdir()
    with running(tmp_path / "r") as server:
        for scale in (1, 2, 3):
            assert bring(server, "m", {scale: scaled(scale)}).status_code == 200
        assert bring(server, "m", {9: b"garbage"}).status_code == 400
        until(lambda: models_below(tmp_path / "tmp") == 1, "the files in force alone are left")
        folder = next((tmp_path / "tmp").glob("bitserve-loaded-*"))
        # the server may still be removing the refused files in there
        until(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists(), "the folder gone")
        refused = bring(server, "m", {1: scaled(1)})
        assert (refused.status_code, str(tmp_path) in refused.text) == (400, False)
        assert "cannot be stored: No such file or directory" in refused.text
    assert not list((tmp_path / "tmp").glob("bitserve-*"))


def models_below(folder: Path) -> int:
    """Model files; folders that go while they are walked are passed over."""
    return sum(names.count("model.onnx") for _, _, names in os.walk(folder))


def manager_of(folder: Path, gateway: Gateway | None = None) -> ModelManager:
    return ModelManager(Settings(repository=folder, watch_s=0), gateway or gateway_here())


def gateway_here() -> Gateway:
    return Gateway(Registry(), Device(asyncio.get_running_loop(), 1))


def test_a_model_deleted_while_it_drains_leaves_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "kept", linear())
    place(tmp_path, "ghost", linear())
    drained: list[Callable[[], None]] = []

    async def scenario() -> list[str]:
        gateway = gateway_here()
        manager = manager_of(tmp_path, gateway)
        for model in ("kept", "ghost"):
            await manager.load(model)
        monkeypatch.setattr(gateway, "retire", lambda endpoint, stopped: drained.append(stopped))
        for model in ("kept", "ghost"):
            manager.unload(model)
        shutil.rmtree(tmp_path / "ghost")
        await manager.look()
        for stopped in drained:
            stopped()
        await manager.stop()
        return [f"{version.model} {version.state} {version.reason}" for version in gateway.registry.all()]

    assert asyncio.run(scenario()) == ["kept UNAVAILABLE unloaded"]


def test_a_stopping_server_ends_its_load_calls(tmp_path: Path) -> None:
    async def scenario() -> float:
        manager = manager_of(tmp_path)
        await manager.start()
        place(tmp_path, "m", slow(width=512, layers=12))
        place(tmp_path, "n", slow(width=512, layers=13))
        loads = [asyncio.create_task(manager.load(model)) for model in ("m", "n", "m")]
        await asyncio.sleep(0.5)
        began_s = time.monotonic()
        manager.begin_stop()
        for load in loads:
            with pytest.raises(Stopping, match="Server is stopping"):
                await load
        with pytest.raises(Stopping, match="Server is stopping"):
            await manager.load("m")
        ended_s = time.monotonic()
        await manager.stop()
        return ended_s - began_s

    assert asyncio.run(scenario()) < 2


def test_a_temporary_cache_goes_with_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "r").mkdir()
    (tmp_path / "r/.cache").write_bytes(b"in the way")

    async def scenario() -> None:
        manager = manager_of(tmp_path / "r")
        assert len(list((tmp_path / "tmp").glob("bitserve-cache-*"))) == 1
        await manager.stop()

    asyncio.run(scenario())
    assert not list((tmp_path / "tmp").iterdir())
    (tmp_path / "own").mkdir()
    Plans(Settings(repository=tmp_path / "r", cache=tmp_path / "own")).close()
    assert (tmp_path / "own").is_dir(), "a cache that was given is kept"
