"""What bounds a model's queue and batches. Plain frozen values; `app.config` reads them from `config.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

__all__ = ["Limits", "ModelOptions", "QueueOptions", "QueuePolicy"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How a batch is formed. `max_batch_rows` 0 means that requests run one at a time, whatever their rows."""

    max_batch_rows: int = 32
    preferred_rows: tuple[int, ...] = ()
    max_queue_delay_ns: int = 0

    def within(self, most_rows: int) -> Limits:
        """The same, and no batch of more rows than an engine takes (0 = of any) is formed of several requests."""
        if not most_rows or self.max_batch_rows <= most_rows:
            return self
        preferred = tuple(rows for rows in self.preferred_rows if rows <= most_rows)
        return replace(self, max_batch_rows=most_rows, preferred_rows=preferred)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Triton's ModelQueuePolicy of one priority level (a size or timeout of 0 means none)."""

    max_queue_requests: int = 0
    default_timeout_ns: int = 0
    allow_timeout_override: bool = True
    delay_expired: bool = False
    """True: an expired request moves behind all live ones of its level. False: it is answered with an error."""

    def timeout_ns(self, asked_ns: int) -> int:
        """The timeout in force for a request that asked for `asked_ns` (0 = did not ask).

        A request may shorten the default, never lengthen it.
        """
        if self.allow_timeout_override and asked_ns > 0:
            return min(asked_ns, self.default_timeout_ns) if self.default_timeout_ns else asked_ns
        return self.default_timeout_ns


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """All levels of one queue. `max_rows` bounds rows over all levels (0 = unbounded)."""

    max_rows: int = 1024
    levels: int = 0
    default_level: int = 0
    policy: QueuePolicy = QueuePolicy()
    level_policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))

    def level(self, asked: int) -> int:
        """The level of a request that asked for `asked`: 1 is highest; 0 or beyond the levels takes the default."""
        if self.levels == 0:
            return 0
        return asked if 1 <= asked <= self.levels else self.default_level

    def policy_of(self, level: int) -> QueuePolicy:
        return self.level_policies.get(level, self.policy)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Everything a model's `config.toml` may override.

    `instances` None = as many as streams, `streams` None = as many as instances; both None = as measured by the build.
    """

    limits: Limits = Limits()
    queue: QueueOptions = QueueOptions()
    instances: int | None = None
    streams: int | None = None
    gpus: tuple[int, ...] = ()
    """The numbers of the GPUs that run it, each with so many instances; none: all that are here."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    label_files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Where the labels came from, by output: for those who read the configuration back."""
    preserve_ordering: bool = False
    version_policy: str = "latest"
    """"latest", "all", or version numbers joined by commas."""
