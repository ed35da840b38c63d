"""Triton's L0_batcher cases by their names, each with its executions and batch statistics.

Not here: `*_allow_ragged`, since there is no ragged batching. In the `*_different_shape` cases Triton cuts a batch
short where the shape changes; here each shape waits in a group of its own, and loses nothing to its neighbours.
"""

from __future__ import annotations

from app.serving.limits import Limits, ModelOptions
from tests.support.fakes import Bench, Sent

DELAY_MS = 10_000


def bench(preferred: tuple[int, ...] = (2, 6), delay_ms: int = DELAY_MS, max_rows: int = 8, hold: int = 0) -> Bench:
    """Instances enough for every batch, so that only the policy decides. `hold` is TRITONSERVER_DELAY_SCHEDULER."""
    made = Bench(ModelOptions(Limits(max_rows, preferred, delay_ms * 1_000_000)), slots=4)
    made.endpoint.hold_requests = hold
    return made


def check_status(made: Bench, batches: dict[int, int], requests: int) -> None:
    """Finish what runs; `batches` maps rows to executions."""
    made.finish()
    assert {rows: entry[0] for rows, entry in made.stats.batches.items()} == batches
    assert made.stats.executions == sum(batches.values())
    assert made.stats.inferred_rows == sum(rows * count for rows, count in batches.items())
    assert made.stats.request_ns["success"].count == requests
    assert made.endpoint.in_flight == 0


def returns_at_once(made: Bench, *sent: Sent) -> None:
    made.finish()
    assert all(one.answered for one in sent)


def returns_after_delay(made: Bench, *sent: Sent, since_ms: int = 0) -> None:
    """Each returns when `sent[0]` is as old as the delay, not 1 ms earlier; it was sent `since_ms` ago."""
    made.advance_ms(DELAY_MS - since_ms - 1)
    made.finish()
    assert not any(one.answered for one in sent)
    made.advance_ms(1)
    made.finish()
    assert all(one.answered for one in sent)


def test_static_batch_preferred() -> None:
    made = bench()
    returns_at_once(made, made.send(2))
    returns_at_once(made, made.send(6))
    check_status(made, {2: 1, 6: 1}, 2)


def test_static_batch_lt_any_preferred() -> None:
    made = bench()
    returns_after_delay(made, made.send(1))
    check_status(made, {1: 1}, 1)


def test_static_batch_not_preferred() -> None:
    made = bench()
    returns_after_delay(made, made.send(3))
    check_status(made, {3: 1}, 1)


def test_static_batch_gt_max_preferred() -> None:
    made = bench()
    returns_at_once(made, made.send(7))
    check_status(made, {7: 1}, 1)


def test_multi_batch_different_shape() -> None:
    """Triton answers the first at once, since the second closes its batch; here each waits for its own delay."""
    made = bench()
    first = made.send(1, width=2)
    made.advance_ms(1000)
    second = made.send(1, width=1)
    returns_after_delay(made, first, since_ms=1000)
    assert not second.answered
    made.advance_ms(1000)
    returns_at_once(made, second)
    check_status(made, {1: 2}, 2)


def test_multi_batch_not_preferred() -> None:
    made = bench()
    first = made.send(1)
    made.advance_ms(1000)
    returns_after_delay(made, first, made.send(3), since_ms=1000)
    check_status(made, {4: 1}, 2)


def test_multi_batch_not_preferred_different_shape() -> None:
    """Triton: the third request flushes the first two. Here the two wait for their delay, and it for its own."""
    made = bench()
    first, second = made.send(1), made.send(3)
    made.advance_ms(1000)
    third = made.send(1, width=2)
    returns_after_delay(made, first, second, since_ms=1000)
    assert not third.answered
    made.advance_ms(1000)
    check_status(made, {4: 1, 1: 1}, 3)


def test_multi_batch_preferred_different_shape() -> None:
    """As above, and a fourth request makes the third's group a preferred size: it overtakes the first two."""
    made = bench()
    first, second = made.send(1), made.send(3)
    made.advance_ms(1000)
    returns_at_once(made, made.send(1, width=2), made.send(5, width=2))
    returns_after_delay(made, first, second, since_ms=1000)
    check_status(made, {4: 1, 6: 1}, 4)


def test_multi_batch_gt_max_preferred() -> None:
    made = bench()
    first = made.send(3)
    made.advance_ms(1000)
    returns_at_once(made, first, made.send(7))
    check_status(made, {3: 1, 7: 1}, 2)


def test_multi_batch_sum_gt_max_preferred() -> None:
    made = bench()
    first = made.send(3)
    made.advance_ms(1000)
    second = made.send(4)
    returns_at_once(made, first)
    returns_after_delay(made, second)
    check_status(made, {3: 1, 4: 1}, 2)


def both(inputs: dict) -> dict:
    return {"y": inputs["x"], "z": -inputs["x"]}


def outputs_bench() -> Bench:
    return Bench(ModelOptions(Limits(8, (2, 6), DELAY_MS * 1_000_000)), function=both, outputs=("y", "z"))


def test_multi_same_output0() -> None:
    made = outputs_bench()
    first, second = made.send(1, 5, outputs=("y",)), made.send(1, 6, outputs=("y",))
    check_status(made, {2: 1}, 2)
    assert (first.values, second.values) == ([5], [6])
    assert set(first.reply) == set(second.reply) == {"y"}


def test_multi_same_output1() -> None:
    made = outputs_bench()
    sent = [made.send(1, value, outputs=("z",)) for value in (5, 6)]
    check_status(made, {2: 1}, 2)
    assert [{name: array.item() for name, array in one.reply.items()} for one in sent] == [{"z": -5}, {"z": -6}]


def test_multi_different_outputs() -> None:
    made = outputs_bench()
    first, second = made.send(1, 5, outputs=("y",)), made.send(1, 6, outputs=("z",))
    check_status(made, {2: 1}, 2)
    assert {name: array.item() for name, array in first.reply.items()} == {"y": 5}
    assert {name: array.item() for name, array in second.reply.items()} == {"z": -6}


def test_multi_different_output_order() -> None:
    made = outputs_bench()
    sent = [made.send(1, 5, outputs=("y", "z")), made.send(1, 6, outputs=("z", "y"))]
    check_status(made, {2: 1}, 2)
    assert [(one.reply["y"].item(), one.reply["z"].item()) for one in sent] == [(5, -5), (6, -6)]


def test_multi_batch_delayed_sum_gt_max_preferred() -> None:
    made = bench(hold=2)
    first = made.send(3)
    made.advance_ms(1000)
    second = made.send(4)
    returns_at_once(made, first)
    returns_after_delay(made, second)
    check_status(made, {3: 1, 4: 1}, 2)


def test_multi_batch_delayed_use_max_batch() -> None:
    """The scheduler wakes only when the first is older than the delay: then all go, up to the limit."""
    made = bench(hold=3)
    sent = [made.send(3), made.send(4)]
    made.advance_ms(DELAY_MS + 1000)
    assert made.launched_rows == []
    returns_at_once(made, *sent, made.send(1))
    check_status(made, {8: 1}, 3)


def test_multi_batch_delayed_preferred_different_shape() -> None:
    """Triton sends the first two because the third has another shape; here they wait for their delay."""
    made = bench(hold=4)
    first, second = made.send(1), made.send(3)
    made.advance_ms(1000)
    third = made.send(1, width=2)
    assert made.launched_rows == []
    returns_at_once(made, third, made.send(5, width=2))
    returns_after_delay(made, first, second, since_ms=1000)
    check_status(made, {4: 1, 6: 1}, 4)


def test_multi_batch_use_biggest_preferred() -> None:
    made = bench(hold=6)
    returns_at_once(made, *[made.send(1) for _ in range(6)])
    check_status(made, {6: 1}, 6)


def test_multi_batch_use_best_preferred() -> None:
    made = bench(hold=3)
    sent = [made.send(1), made.send(1)]
    made.advance_ms(1000)
    last = made.send(1)
    returns_at_once(made, *sent)
    returns_after_delay(made, last)
    check_status(made, {2: 1, 1: 1}, 3)


def test_multi_batch_preserve_ordering() -> None:
    made = Bench(ModelOptions(Limits(max_batch_rows=4), preserve_ordering=True), slots=3)
    made.endpoint.hold_requests = 12
    sent = [made.send(1, value) for value in range(12)]
    for slot in reversed(made.session.running):
        slot.finish()
    made.loop.run()
    assert [one.values for one in sent] == [[value] for value in range(12)]
    check_status(made, {4: 3}, 12)


def test_preferred_batch_only_aligned() -> None:
    made = bench((4, 6), 0, hold=4)
    returns_at_once(made, *[made.send(1) for _ in range(4)])
    check_status(made, {4: 1}, 4)


def test_preferred_batch_only_unaligned() -> None:
    made = bench((4, 6), 0, hold=5)
    returns_at_once(made, *[made.send(1) for _ in range(5)])
    check_status(made, {4: 1, 1: 1}, 5)


def test_preferred_batch_only_use_biggest_preferred() -> None:
    made = bench((4, 6), 0, hold=7)
    returns_at_once(made, *[made.send(1) for _ in range(7)])
    check_status(made, {6: 1, 1: 1}, 7)


def test_preferred_batch_only_use_no_preferred_size() -> None:
    made = bench((4, 6), 0, hold=3)
    returns_at_once(made, *[made.send(1) for _ in range(3)])
    check_status(made, {3: 1}, 3)


def test_max_queue_delay_only_default() -> None:
    """Delay 0, one instance: the first request runs alone, and what arrives meanwhile is the second batch."""
    made = Bench(ModelOptions(Limits(max_batch_rows=32)))
    sent = [made.send(1) for _ in range(12)]
    assert made.launched_rows == [1]
    made.finish()
    returns_at_once(made, *sent)
    check_status(made, {1: 1, 11: 1}, 12)


def test_max_queue_delay_only_non_default() -> None:
    made = bench((), max_rows=32)
    returns_after_delay(made, *[made.send(1) for _ in range(12)])
    check_status(made, {12: 1}, 12)


def test_a_batch_grows_while_its_instance_is_busy() -> None:
    """Triton's payload that is not picked up yet may grow; here a batch is only formed when a slot is free."""
    made = Bench(ModelOptions(Limits(8, (2, 6), DELAY_MS * 1_000_000)))
    made.send(2)
    waiting = [made.send(2), made.send(2), made.send(2)]
    made.finish()
    assert made.launched_rows == [2, 6]
    returns_at_once(made, *waiting)
    check_status(made, {2: 1, 6: 1}, 4)


def test_the_reason_of_every_flush_is_counted() -> None:
    made = bench()
    made.send(2)
    made.send(7)
    made.send(1)
    made.advance_ms(DELAY_MS)
    made.finish()
    assert made.stats.flushes == {"preferred": 1, "full": 1, "delay": 1}
