"""Publish files at a place of a store, all or none; fetch them, every byte checked; take them back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path

from app.store.bucket import Bucket
from app.store.errors import AlreadyThere, NotThere, StoreError, VersionTaken
from app.store.published import LARGEST_BYTES, PUBLISHED, File, Published, decode, encode, signed
from engines.files import open_plain

__all__ = ["fetch", "publish", "read", "withdraw"]


async def read(bucket: Bucket, place: str) -> Published:
    """What is published at a place. Raises NotThere, StoreRefused or StoreError."""
    return decode(await bucket.read(f"{place}/{PUBLISHED}", LARGEST_BYTES), place)


async def publish(
    bucket: Bucket, place: str, files: Mapping[str, Path | bytes], key: bytes | None = None
) -> tuple[Published, str]:
    """Write files under their names, and say so last, signed with `key`; what was published, and its tag.

    Raises VersionTaken where another was first, StoreError, or ModelRefused for a link; then nothing is left of it,
    but for what a store that has gone away keeps, which `Writer.sweep` removes.
    """
    attempt = secrets.token_hex(8)
    known = {name: await asyncio.to_thread(_described, content) for name, content in files.items()}
    published = Published(attempt, known)
    if key is not None:
        published = signed(published, key)
    keys = [f"{place}/{attempt}/{name}" for name in files]
    try:
        for key_of, content in zip(keys, files.values(), strict=True):
            await bucket.write(key_of, content)
    except BaseException:
        await _remove_somehow(bucket, keys)
        raise
    try:  # from here on only the store knows, if its answer is lost: then the files stay
        return published, await bucket.create(f"{place}/{PUBLISHED}", encode(published))
    except AlreadyThere:
        if (tag := await _own_tag(bucket, place, published)) is not None:
            return published, tag
        await _remove_somehow(bucket, keys)
        raise VersionTaken(f"{place} was published by another meanwhile; what is published is immutable") from None


async def _own_tag(bucket: Bucket, place: str, published: Published) -> str | None:
    """Of what is there, where it is ours: the store had done it, and its answer to an earlier try was lost."""
    there = [one.tag for one in await bucket.list(place) if one.key == f"{place}/{PUBLISHED}"]
    with contextlib.suppress(NotThere):
        return there[0] if there and (await read(bucket, place)).attempt == published.attempt else None
    return None


async def _remove_somehow(bucket: Bucket, keys: list[str]) -> None:
    with contextlib.suppress(StoreError):
        await bucket.remove(keys)


def _described(content: Path | bytes) -> File:
    if isinstance(content, bytes):
        return File(len(content), hashlib.sha256(content).hexdigest())
    with open_plain(content) as file:
        digest = hashlib.file_digest(file, "sha256")
        return File(file.tell(), digest.hexdigest())


async def fetch(bucket: Bucket, place: str, published: Published, folder: Path) -> None:
    """Download all files into an empty folder. Raises StoreError, StoreRefused for other bytes, or OSError."""
    for name, file in published.files.items():
        await bucket.download(f"{place}/{published.attempt}/{name}", folder / name, file.size_bytes, file.sha256)


async def withdraw(bucket: Bucket, place: str) -> None:
    """Take back what is published: first what says so, then its files."""
    await bucket.remove([f"{place}/{PUBLISHED}"])
    await bucket.remove([one.key for one in await bucket.list(place)])
