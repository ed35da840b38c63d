"""Objects under one address (`s3://bucket/prefix`, `gs://`, `az://`, `file://`), and the few things done with them.

Credentials, endpoint and region are those of the usual variables of each cloud (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, ...), which obstore reads. It sends a request again, with jitter, that failed on the way or with
a status of 5xx.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from app.store.errors import AlreadyThere, NotThere, StoreAway, StoreError, StoreRefused

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["ADDRESSES", "Bucket", "Object", "is_address", "open_bucket"]

log = logging.getLogger(__name__)
ADDRESSES = ("s3", "gs", "az", "file")
"""Kinds of addresses, as their schemes."""
_RETRIES = {
    "max_retries": 20, "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 2},
}  # fmt: skip
_ANSWER_WITHIN = "30s"
"""Of one request, its body included: a part of 8 MiB at 270 KB/s."""
_CONNECT_WITHIN = "5s"
_PART_BYTES = 8 * 2**20
_TOO_SHORT = "it answers 416"
"""Range Not Satisfiable: an object ends before the part that is asked for."""
_LATER = ("408", "429")
_PAGE = 1000
"""Objects that S3 lists at once."""


class Object(NamedTuple):
    """One object of a listing. `tag` is another one where its bytes are (an ETag, without its quotes)."""

    key: str
    size_bytes: int
    tag: str
    changed_s: float
    """Unix time."""


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether a repository is named by the address of a store, and not by a folder."""
    return urlsplit(os.fspath(text)).scheme in ADDRESSES


def open_bucket(url: str) -> Bucket:
    """Nothing is asked of the store yet. Raises StoreError for an address that is none."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise StoreError(f"a repository at {url} needs obstore: pip install 'bitserve[store]'") from error
    kind = urlsplit(url).scheme
    if kind == "file":
        Path(urlsplit(url).path).mkdir(parents=True, exist_ok=True)
    web: dict[str, Any] = {} if kind == "file" else {
        "client_options": {"allow_http": True, "timeout": _ANSWER_WITHIN, "connect_timeout": _CONNECT_WITHIN},
        "retry_config": _RETRIES,
    }  # fmt: skip
    with _told(f"open {url}"):
        return Bucket(from_url(url, **web), url)


class Bucket:
    """Keys are relative to the address. Every method raises StoreError where the store does not answer."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self._store, self.url = store, url

    async def list(self, under: str = "", *, after: str = "") -> list[Object]:
        """All objects below a folder; of the whole address, those whose keys come after `after`."""
        import obstore

        found: list[Object] = []
        with _told(f"list {under or 'the store'}"):
            async for page in obstore.list(self._store, under or None, offset=after or None, chunk_size=_PAGE):
                found += [
                    Object(one["path"], one["size"], (one["e_tag"] or "").strip('"'), one["last_modified"].timestamp())
                    for one in page
                ]
        return found

    async def read(self, key: str, most_bytes: int) -> bytes:
        """A small object, whole. Raises NotThere, or StoreRefused where it has more bytes than expected."""
        import obstore

        with _told(f"read {key}"):
            answer = await obstore.get_async(self._store, key)
            if answer.meta["size"] > most_bytes:
                raise StoreRefused(f"{key} has {answer.meta['size']} bytes, expected at most {most_bytes}")
            return bytes(await answer.bytes_async())

    async def download(self, key: str, path: Path, size_bytes: int, sha256: str) -> None:
        """Into a new file, part by part. Raises NotThere, StoreRefused where size or hash are others, or OSError."""
        digest = hashlib.sha256()
        file = await asyncio.to_thread(path.open, "xb")
        try:
            for start in range(0, max(1, size_bytes), _PART_BYTES):
                part = await self._part(key, start, min(start + _PART_BYTES, size_bytes), size_bytes)
                if part is None:
                    break
                await asyncio.to_thread(_take, part, file, digest)
        finally:
            await asyncio.to_thread(file.close)
        if digest.hexdigest() != sha256:
            raise StoreRefused(f"{key} is not what was published: expected {size_bytes} bytes of SHA-256 {sha256[:12]}")

    async def _part(self, key: str, start: int, end: int, size_bytes: int) -> bytes | None:
        """Some bytes of an object, asked again until they come whole; None where it has another size."""
        import obstore

        try:
            with _told(f"read {key}"):
                options: Any = {"range": (start, end)} if end > start else {}
                answer = await obstore.get_async(self._store, key, options=options)
                return bytes(await answer.bytes_async()) if answer.meta["size"] == size_bytes else None
        except StoreError as error:
            if _TOO_SHORT in str(error):
                return None
            raise

    async def write(self, key: str, data: bytes | Path) -> None:
        """Put an object, whatever there is of this name; large files in parts."""
        import obstore

        with _told(f"write {key}"):
            await obstore.put_async(self._store, key, data, chunk_size=_PART_BYTES, max_concurrency=4)

    async def create(self, key: str, data: bytes) -> str:
        """Put an object where there is none, and return its tag. Raises AlreadyThere."""
        import obstore

        with _told(f"create {key}"):
            made = await obstore.put_async(self._store, key, data, mode="create", use_multipart=False)
            return (made["e_tag"] or "").strip('"')

    async def remove(self, keys: Iterable[str]) -> None:
        """Remove objects, in this order; those that are not there are no error."""
        import obstore

        for key in keys:  # one by one: not every store knows how to remove many
            with contextlib.suppress(NotThere), _told(f"remove {key}"):
                await obstore.delete_async(self._store, key)


def _take(part: Any, file: Any, digest: Any) -> None:
    file.write(part)
    digest.update(part)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """The library's errors as ours: its texts go on for pages, and their first line has the status."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise AlreadyThere(f"cannot {what}: it is there already") from error
    except FileNotFoundError as error:
        raise NotThere(f"cannot {what}: the store has no such object, or no such bucket") from error
    except exceptions.BaseError as error:
        log.debug("cannot %s: %s", what, error)
        raise _kind_of(str(error))(f"cannot {what}: {_reason(str(error))}") from error


def _kind_of(text: str) -> type[StoreError]:
    """Without a status nobody has answered; with these, somebody who has no time."""
    status = re.search(r"status code: (\d{3})", text)
    return StoreAway if status is None or status[1] in _LATER or status[1].startswith("5") else StoreError


def _reason(text: str) -> str:
    """What the store answered, without its address, which is nobody's business who asks for a model's state."""
    status = re.search(r"status code: (\d{3}(?: [A-Z][A-Za-z ]+)?)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status is None:
        return "it does not answer" if "error sending request" in text or "timed out" in text else "it failed to answer"
    return f"it answers {status[1].strip()}" + (f", {code[1]}" if code else "")
