"""What a listing of a store says is there, and what a mirror has to do about it. Nothing is asked or changed here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from app.store.bucket import Object
from app.store.published import PUBLISHED
from engines.repository import is_model_name

__all__ = ["AFTER_OURS", "LARGEST_FILE_BYTES", "Held", "Remote", "Step", "evictions", "remote_of", "steps"]

AFTER_OURS = ".~"
"""Keys that come after this one are models: what begins with a dot is the server's own, and sorts before."""
LARGEST_FILE_BYTES = 2**24
"""Of a model's own files (configuration, labels); larger ones are left out."""
_VERSION = re.compile(r"(0|[1-9][0-9]{0,17})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Remote(NamedTuple):
    """Versions that are published, with the tags that say so; files of models beside their versions, with theirs."""

    versions: dict[str, dict[int, str]]
    files: dict[str, dict[str, str]]


class Held(NamedTuple):
    """A version on this disk. `used_s`: when it was last wanted, Unix time."""

    tag: str
    size_bytes: int
    used_s: float


class Step(NamedTuple):
    """Fetch a version (again, where another one is there now), or remove it."""

    model: str
    version: int
    tag: str
    """Empty where it is to be removed."""


def remote_of(objects: Iterable[Object]) -> Remote:
    """Objects of other shapes are somebody else's, or no publication yet."""
    remote = Remote({}, {})
    for one in objects:
        model, _, rest = one.key.partition("/")
        if not is_model_name(model):
            continue
        version, _, name = rest.partition("/")
        if name == PUBLISHED and _VERSION.fullmatch(version):
            remote.versions.setdefault(model, {})[int(version)] = one.tag
        elif not name and _is_file(rest) and one.size_bytes <= LARGEST_FILE_BYTES:
            remote.files.setdefault(model, {})[rest] = one.tag
    return remote


def _is_file(name: str) -> bool:
    """Not what is named as a version is: some tools put an empty object in the place of a folder."""
    return bool(_FILE.fullmatch(name)) and not name.isdigit()


def steps(
    remote: Remote, held: Mapping[str, Mapping[int, Held]], choose: Callable[[str, set[int]], set[int]]
) -> list[Step]:
    """What is gone is removed, what is wanted and absent (or another one) is fetched; all else stays as it is.

    `choose` says which of a model's published versions are wanted.
    """
    found = [
        Step(model, number, "")
        for model, versions in held.items()
        for number in versions
        if number not in remote.versions.get(model, {})
    ]
    for model, tags in sorted(remote.versions.items()):
        wanted = choose(model, set(tags))
        has = held.get(model, {})
        found += [
            Step(model, number, tag)
            for number, tag in sorted(tags.items())
            if (number in wanted or number in has) and (number not in has or has[number].tag != tag)
        ]
    return found


def evictions(
    held: Mapping[str, Mapping[int, Held]], wanted: Callable[[str, int], bool], needed_bytes: int, limit_bytes: int
) -> list[Step]:
    """Versions that are not wanted, those first that were wanted longest ago, until `needed_bytes` fit as well.

    None where they would not fit without all of them either.
    """
    total = sum(one.size_bytes for versions in held.values() for one in versions.values()) + needed_bytes
    spare = sorted(
        (one.used_s, model, number, one.size_bytes)
        for model, versions in held.items()
        for number, one in versions.items()
        if not wanted(model, number)
    )
    gone: list[Step] = []
    if total - sum(size_bytes for *_, size_bytes in spare) > limit_bytes:
        return gone
    for _, model, number, size_bytes in spare:
        if total <= limit_bytes:
            break
        gone.append(Step(model, number, ""))
        total -= size_bytes
    return gone
