"""Publishing and fetching, against real stores: all or nothing, one writer wins, every byte is checked."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from app.store.bucket import open_bucket
from app.store.errors import AlreadyThere, NotThere, StoreError, StoreRefused, VersionTaken
from app.store.opened import open_store
from app.store.publications import fetch, publish, read, withdraw
from app.store.writer import Writer
from tests.support.stores import Store

pytestmark = pytest.mark.anyio
LARGE = bytes(range(256)) * 50_000  # 12.8 MB: two parts


@pytest.fixture(params=["s3", "file"])
def url(request, tmp_path, reached):
    return reached.url if request.param == "s3" else f"file://{tmp_path / 'store'}"


async def test_what_is_published_comes_back_whole(url, tmp_path):
    bucket = open_bucket(url)
    (tmp_path / "model.onnx").write_bytes(LARGE)
    with pytest.raises(NotThere):
        await read(bucket, "m/1")
    made, tag = await publish(bucket, "m/1", {"model.onnx": tmp_path / "model.onnx", "manifest.json": b"{}"})
    assert await read(bucket, "m/1") == made
    assert tag in {one.tag for one in await bucket.list("m/1") if one.key == "m/1/published.json"}
    folder = tmp_path / "copy"
    folder.mkdir()
    await fetch(bucket, "m/1", made, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.onnx": LARGE, "manifest.json": b"{}"}
    await withdraw(bucket, "m/1")
    assert await bucket.list() == []


async def test_of_many_writers_one_wins_and_the_others_leave_nothing(url):
    contents = [b"model %d" % number for number in range(6)]
    buckets = [open_bucket(url) for _ in contents]
    ended = await asyncio.gather(
        *(publish(bucket, "m/1", {"model.onnx": data}) for bucket, data in zip(buckets, contents, strict=True)),
        return_exceptions=True,
    )
    (winner,) = [at for at, one in enumerate(ended) if not isinstance(one, BaseException)]
    for at, one in enumerate(ended):
        assert at == winner or (isinstance(one, VersionTaken) and "m/1 was published by another" in str(one)), one
    published = await read(buckets[0], "m/1")
    assert published.files["model.onnx"].sha256 == hashlib.sha256(contents[winner]).hexdigest()
    keys = [one.key for one in await buckets[0].list()]
    assert sorted(keys) == sorted(["m/1/published.json", f"m/1/{published.attempt}/model.onnx"])


async def test_other_bytes_are_refused(reached: Store, tmp_path: Path) -> None:
    bucket = open_bucket(reached.url)
    made, _ = await publish(bucket, "m/1", {"model.onnx": b"as it was"})
    for at, data in enumerate((b"as it Was", b"as it was, and more", b"")):
        reached.put(f"m/1/{made.attempt}/model.onnx", data)
        (tmp_path / str(at)).mkdir()
        with pytest.raises(StoreRefused, match="is not what was published: expected 9 bytes"):
            await fetch(bucket, "m/1", made, tmp_path / str(at))


async def test_an_answer_that_was_lost_is_no_other_writer(reached, monkeypatch):
    """The store has made the object, and the try that is made again finds it there."""
    bucket = open_bucket(reached.url)
    create = bucket.create

    async def lost(key: str, data: bytes) -> str:
        await create(key, data)
        return await create(key, data)

    monkeypatch.setattr(bucket, "create", lost)
    made, tag = await publish(bucket, "m/1", {"model.onnx": b"x"})
    assert tag
    assert await read(bucket, "m/1") == made


async def test_a_store_that_ignores_conditional_puts_is_not_written(rclone_server, monkeypatch):
    for name, value in rclone_server.env.items():
        monkeypatch.setenv(name, value)
    bucket = open_bucket(rclone_server.url)
    writer = Writer(bucket)
    with pytest.raises(StoreError, match="ignores conditional puts"):
        await writer.publish("m", 1, {"model.onnx": b"x"})
    assert await bucket.list() == []
    await bucket.write("m/config.toml", b"")  # it can be written; and read
    assert [one.key for one in await bucket.list()] == ["m/config.toml"]
    await bucket.remove(["m/config.toml", "m/not there"])


async def test_wrong_credentials_are_said(rclone_server, monkeypatch):
    for name, value in {**rclone_server.env, "AWS_SECRET_ACCESS_KEY": "another"}.items():
        monkeypatch.setenv(name, value)
    bucket = open_bucket(rclone_server.url)
    with pytest.raises(StoreError, match=r"cannot list the store: it answers 403 Forbidden, SignatureDoesNotMatch"):
        await bucket.list()
    with pytest.raises(StoreError, match="cannot create"):
        await Writer(bucket).check()


async def test_a_store_that_honours_them_is_written(url):
    bucket = open_bucket(url)
    await Writer(bucket).check()
    assert await bucket.list() == []
    await bucket.create("x", b"1")
    with pytest.raises(AlreadyThere):
        await bucket.create("x", b"2")


async def test_versions_are_counted_with_those_that_were_only_tried(reached):
    bucket = open_bucket(reached.url)
    writer = Writer(bucket)
    assert await writer.next_version("m") == 1
    await writer.publish("m", 3, {"model.onnx": b"x"})
    await bucket.write("m/7/0123456789abcdef/model.onnx", b"x")
    await bucket.write("mm/9/published.json", b"x")
    await bucket.write("m/config.toml", b"x")
    assert await writer.next_version("m") == 8
    assert await writer.sweep() == 0  # it is young: somebody may be at work on it


async def test_a_mirror_without_room_takes_nothing_back(reached, tmp_path, monkeypatch):
    """What is published is; this server fetches it as others do."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.store.versions.copy_version", full)
    (tmp_path / "model.onnx").write_bytes(b"a model")
    opened = open_store(reached.url, tmp_path / "mirror", None)
    await opened.versions.publish("m", 1, {"model.onnx": tmp_path / "model.onnx"}, b"{}")
    assert set((await read(opened.bucket, "m/1")).files) == {"model.onnx", "manifest.json"}
    assert not opened.versions.here
