"""Triton's L0_model_queue cases by their names, and where our defaults are kinder than its."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from app.serving.errors import DeadlineExceeded, QueueFull
from app.serving.limits import Limits, ModelOptions, QueueOptions, QueuePolicy
from tests.support.fakes import MS, Bench

DELAY_MS = 10_000
LIMITS = Limits(8, (4, 8), DELAY_MS * MS)


def bench(policy: QueuePolicy | None = None, limits: Limits = LIMITS, **queue: object) -> Bench:
    options = QueueOptions(policy=policy or QueuePolicy(), **queue)  # type: ignore[arg-type]
    return Bench(ModelOptions(limits, options))


def timed(default_ms: int, **policy: object) -> QueuePolicy:
    return QueuePolicy(default_timeout_ns=default_ms * MS, **policy)  # type: ignore[arg-type]


def test_max_queue_size() -> None:
    made = bench(QueuePolicy(max_queue_requests=8))
    running = made.send(8)
    for _ in range(8):
        made.send(1)
    for _ in range(2):
        with pytest.raises(QueueFull, match=r"^Exceeds maximum queue size$"):
            made.send(1)
    made.finish()
    assert running.answered
    assert made.launched_rows == [8, 8]
    assert made.stats.failures["REJECTED"] == 2


def test_policy_delay() -> None:
    made = bench(timed(100, delay_expired=True))
    first = made.send(1)
    made.advance_ms(200)
    later = [made.send(2), made.send(2)]
    made.finish()
    assert all(one.answered for one in later)
    assert not first.answered
    made.advance_ms(DELAY_MS - 201)
    assert made.launched_rows == [4]
    made.advance_ms(1)
    made.finish()
    assert first.values == [0]
    assert made.launched_rows == [4, 1]


def test_policy_reject() -> None:
    made = bench(timed(100))
    first = made.send(1)
    made.advance_ms(99)
    assert not first.answered
    made.advance_ms(1)
    assert isinstance(first.reply, DeadlineExceeded)
    assert str(first.reply) == "Request timeout expired"
    made.send(2)
    made.send(2)
    assert made.launched_rows == [4]
    assert made.stats.failures["REJECTED"] == 1


@pytest.mark.parametrize(
    ("asked_ms", "ends_ms"), [(100, 100), (10_000, 1000), (0, 1000)], ids=["shorter", "larger", "none"]
)
def test_timeout_override(asked_ms: int, ends_ms: int) -> None:
    """A request may shorten the default timeout; a larger one does not override it."""
    made = bench(timed(1000))
    first = made.send(1, timeout_ms=asked_ms)
    made.advance_ms(50)
    made.send(2)
    made.send(2)
    made.advance_ms(ends_ms - 51)
    assert not first.answered
    assert made.launched_rows == []
    made.advance_ms(1)
    assert isinstance(first.reply, DeadlineExceeded)
    assert made.launched_rows == [4]


def test_a_model_may_forbid_the_override() -> None:
    made = bench(timed(1000, allow_timeout_override=False))
    first = made.send(1, timeout_ms=1)
    made.advance_ms(999)
    assert not first.answered
    made.advance_ms(1)
    assert first.answered


def test_priority_levels() -> None:
    made = bench(levels=2, default_level=2)
    first = made.send(2, 1)
    second = made.send(1, 2)
    urgent = made.send(2, 3, priority=1)
    made.finish()
    assert made.session.launched[0]["x"][:, 0].tolist() == [3, 3, 1, 1]
    assert first.answered
    assert urgent.answered
    made.advance_ms(DELAY_MS)
    made.finish()
    assert second.values == [2]


def test_max_priority_levels() -> None:
    beyond_32_bits = 2**32
    made = bench(levels=beyond_32_bits, default_level=beyond_32_bits)
    made.send(2, 1)
    second = made.send(1, 2, priority=beyond_32_bits)
    made.send(2, 3, priority=1)
    assert made.session.launched[0]["x"][:, 0].tolist() == [3, 3, 1, 1]
    assert not second.answered


def test_priority_with_policy() -> None:
    policies = MappingProxyType({1: timed(60_000, delay_expired=True), 2: timed(60_000)})
    made = bench(limits=Limits(20, (4, 20), DELAY_MS * MS), levels=2, default_level=1, level_policies=policies)
    sent = []
    for rows, priority, timeout_ms in [(2, 1, 0), (1, 1, 1000), (2, 1, 0), (2, 2, 2000), (3, 2, 0), (6, 2, 0)]:
        sent.append(made.send(rows, len(sent), priority=priority, timeout_ms=timeout_ms))
        made.advance_ms(200)
    assert [batch["x"][:, 0].tolist() for batch in made.session.launched] == [[0, 0, 2, 2]]
    made.finish()
    made.advance_ms(1400)
    assert isinstance(sent[3].reply, DeadlineExceeded)
    assert made.session.launched[1]["x"][:, 0].tolist() == [1, 4, 4, 4]
    made.finish()
    made.advance_ms(DELAY_MS)
    made.finish()
    assert sent[5].values == [5] * 6
    assert made.launched_rows == [4, 4, 6]


@pytest.mark.parametrize("asked", [3, 99, -1])
def test_priority_beyond_the_levels_takes_the_default(asked: int) -> None:
    made = bench(levels=2, default_level=2)
    made.send(1, 1, priority=asked)
    made.send(3, 2, priority=1)
    assert made.session.launched[0]["x"][:, 0].tolist() == [2, 2, 2, 1]


def test_without_levels_priority_changes_nothing() -> None:
    made = bench()
    made.send(1, 1, priority=2)
    made.send(3, 2, priority=1)
    assert made.session.launched[0]["x"][:, 0].tolist() == [1, 2, 2, 2]


def test_a_level_has_its_own_limit() -> None:
    made = bench(levels=2, default_level=2, level_policies=MappingProxyType({1: QueuePolicy(max_queue_requests=1)}))
    made.send(1, priority=1)
    with pytest.raises(QueueFull):
        made.send(1, priority=1)
    made.send(1, priority=2)


@pytest.mark.parametrize("limits", [LIMITS, Limits(8), Limits(0)], ids=["delayed", "at once", "unbatched"])
def test_a_timeout_counts_by_default_and_in_every_mode(limits: Limits) -> None:
    made = bench(limits=limits)
    made.send(8)
    waiting = made.send(1, timeout_ms=5)
    made.advance_ms(4)
    assert not waiting.answered
    made.advance_ms(1)
    assert isinstance(waiting.reply, DeadlineExceeded)
    made.finish()
    assert made.launched_rows == [8]


def test_a_batch_that_runs_is_not_stopped_by_its_deadline() -> None:
    made = bench()
    sent = made.send(8, 7, timeout_ms=5)
    made.advance_ms(50)
    assert not sent.answered
    made.finish()
    assert sent.values == [7] * 8


def test_the_queue_is_bounded_in_rows_by_default() -> None:
    made = bench()
    made.send(8)
    for _ in range(128):
        made.send(8)
    with pytest.raises(QueueFull):
        made.send(1)
    assert made.endpoint.queue.rows == 1024
    made.finish()
    made.send(8)
