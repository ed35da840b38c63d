"""The serving parameters that are tuned, and the values that are worth a trial. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from app.config import ModelConfig
from app.serving.limits import ModelOptions
from engines.runtime.session import divided

__all__ = ["KEYS", "Parameters", "Space", "changes", "parameters_of", "preferred_of", "space_of"]

KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "streams": ("streams",),
        "instances": ("instances",),
        "max_batch_size": ("batching", "max_batch_size"),
        "max_queue_delay_us": ("batching", "max_queue_delay_us"),
    }
)
"""Where each parameter stands in config.toml."""
_ENGINE = ("streams", "instances")
_DELAYS_US = (0, 200, 500, 1000, 2000, 5000, 10000)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, order=True)
class Parameters:
    """One setting of what is tuned. `max_batch_size` 0: requests run one at a time, and no delay is waited."""

    streams: int
    instances: int
    max_batch_size: int
    max_queue_delay_us: int

    def document(self) -> dict[str, int]:
        """By config.toml's own names."""
        return asdict(self)


@dataclass(frozen=True)
class Space:
    """Choices in ascending order, so that neighbours are alike. `current` is one of the combinations.

    `smallest_rows`: where no two requests fit into a batch, no delay is waited, and all delays are the same setting.
    """

    lanes: tuple[tuple[int, int], ...]
    """(streams, instances)."""
    batches: tuple[int, ...]
    delays_us: tuple[int, ...]
    current: Parameters
    smallest_rows: int = 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of choices in each dimension."""
        return len(self.lanes), len(self.batches), len(self.delays_us)

    def at(self, lane: int, batch: int, delay: int) -> Parameters:
        """The setting at a position of each dimension."""
        (streams, instances), rows = self.lanes[lane], self.batches[batch]
        found = Parameters(streams, instances, rows, self.delays_us[delay])
        if rows >= 2 * self.smallest_rows or found == self.current:
            return found
        return Parameters(streams, instances, rows, min(self.delays_us))

    def position_of_current(self) -> tuple[int, int, int]:
        """Where the current setting is."""
        now = self.current
        return (
            self.lanes.index((now.streams, now.instances)),
            self.batches.index(now.max_batch_size),
            self.delays_us.index(now.max_queue_delay_us),
        )

    def distinct(self) -> int:
        """How many settings there are."""
        return len({self.at(*position) for position in itertools.product(*map(range, self.sizes))})


def parameters_of(options: ModelOptions, measured_streams: int) -> Parameters:
    """What a configuration comes to, with the number of streams that the build measured."""
    streams, instances = divided(options.streams, options.instances, measured_streams)
    limits = options.limits
    return Parameters(streams, instances, limits.max_batch_rows, limits.max_queue_delay_ns // 1000)


def space_of(
    current: Parameters, *, threads: int, proven_rows: int, preferred: Sequence[int] = (), rows: Iterable[int] = (1,),
    p99_limit_ms: float | None = None,
) -> Space:  # fmt: skip
    """The choices for an engine of `threads` threads whose batches were proven up to `proven_rows` rows.

    A batch holds the largest request and the preferred sizes that the configuration names. No delay is more than half
    of the limit: what waits that long has little left to run in. No more batches are in flight than the engine has
    threads, since the server launches none for which there is no thread.
    """
    counts = sorted({1, *(2**power for power in range(1, 7) if 2**power <= threads), threads})
    lanes = {(s, i) for s in counts for i in counts if s <= i <= 64} | {(current.streams, current.instances)}
    asked = list(rows)
    if current.max_batch_size == 0:
        return Space(tuple(sorted(lanes)), (0,), (current.max_queue_delay_us,), current, min(asked))
    least = max([*preferred, *asked])
    batches = {size for size in _BATCHES if least <= size <= proven_rows} | {current.max_batch_size}
    longest_us = max(_DELAYS_US) if p99_limit_ms is None else p99_limit_ms * 1000 / 2
    delays = {delay for delay in _DELAYS_US if delay <= longest_us} | {current.max_queue_delay_us}
    return Space(tuple(sorted(lanes)), tuple(sorted(batches)), tuple(sorted(delays)), current, min(asked))


def changes(current: Parameters, wanted: Parameters) -> dict[tuple[str, ...], int]:
    """The entries of config.toml, by their paths, that make `current` into `wanted`.

    Streams and instances stand for each other where one is not given, so both are given where either changes.
    """
    before, after = current.document(), wanted.document()
    differing = {name for name in KEYS if before[name] != after[name]}
    if differing & set(_ENGINE):
        differing |= set(_ENGINE)
    return {KEYS[name]: after[name] for name in KEYS if name in differing}


def preferred_of(config: ModelConfig) -> tuple[int, ...]:
    """The sizes that a configuration prefers, which stay as they are."""
    return tuple(config.batching.preferred_batch_size)
