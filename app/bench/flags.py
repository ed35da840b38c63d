"""Flags of several values, read. What is wrong with one is said with an example."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.bench.errors import BenchFailed
from app.bench.sweep import Level

__all__ = ["headers_of", "levels_of", "sizes_of"]

_MOST_LEVELS = 100
_MOST_CONCURRENCY = 4096
_MOST_RATE = 1e6
_LAST_CONTROL = 0x1F


def levels_of(concurrency: str | None, rate: str | None) -> tuple[Level, ...]:
    """Of --concurrency N,N,... or --rate N,N,...; in their order. Raises BenchFailed."""
    if concurrency is not None and rate is not None:
        raise BenchFailed("give --concurrency (closed loop) or --rate (open loop), not both")
    if rate is not None:
        levels = [Level(rate=_rate(word)) for word in rate.split(",")]
    else:
        levels = [Level(concurrency=_concurrency(word)) for word in (concurrency or "").split(",")]
    if len(levels) > _MOST_LEVELS:
        raise BenchFailed(f"{len(levels)} levels are given; expected {_MOST_LEVELS} at most")
    return tuple(levels)


def _concurrency(word: str) -> int:
    if not (word.strip().isascii() and word.strip().isdigit() and 1 <= int(word) <= _MOST_CONCURRENCY):
        raise BenchFailed(f"--concurrency: {word!r} is none; expected 1 to {_MOST_CONCURRENCY}, such as 1,16,64")
    return int(word)


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= _MOST_RATE:
        raise BenchFailed(
            f"--rate: {word!r} is none; expected requests a second up to {_MOST_RATE:g}, such as 500,1000"
        )
    return rate


def sizes_of(words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, of NAME=N,N,... Raises BenchFailed."""
    sizes = {}
    for word in words:
        name, separator, numbers = word.rpartition("=")
        found = numbers.split(",") if numbers else []
        if not separator or not name or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in found):
            raise BenchFailed(f"--shape {word[:60]}: expected NAME=N,N,... such as image=3,224,224, without the rows")
        sizes[name] = tuple(map(int, found))
    return sizes


def headers_of(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of 'NAME: VALUE'. Raises BenchFailed."""
    headers = []
    for word in words:
        name, separator, value = word.partition(":")
        name, value = name.strip(), value.strip()
        plain = word.isascii() and all(ord(character) > _LAST_CONTROL for character in word)
        if not (separator and name and value and plain) or " " in name:
            raise BenchFailed(f"--header {name[:40]}: expected 'NAME: VALUE' on one line, in ASCII")
        headers.append((name, value))
    return tuple(headers)
