"""A batch that takes less than a hand-over runs on the loop, while nothing else runs; answers are the same."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.errors import InferenceFailed
from app.serving.limits import Limits, ModelOptions
from tests.support.fakes import Bench


def inline(bench: Bench) -> int:
    return sum(slot.ran_inline for slot in bench.session.all_slots)


def test_what_nothing_waits_beside_is_answered_within_one_turn_of_the_loop() -> None:
    bench = Bench(inline_rows=4)
    assert bench.send(2, 3.0).values == [3.0, 3.0]
    assert (inline(bench), bench.device.threads_used, bench.endpoint.in_flight) == (1, 0, 0)
    assert bench.stats.executions == 1
    assert bench.stats.request_ns["success"].count == 1


@pytest.mark.parametrize(("rows", "runs_inline"), [(4, True), (5, False)])
def test_only_batches_that_were_measured_to_be_quick(rows: int, runs_inline: bool) -> None:
    bench = Bench(inline_rows=4)
    sent = bench.send(rows)
    assert (inline(bench) == 1, sent.answered) == (runs_inline, runs_inline)
    if not runs_inline:
        bench.finish()
    assert len(sent.values) == rows


def test_requests_that_came_together_share_the_batch() -> None:
    bench = Bench(inline_rows=8)
    sent = [bench.send(1, float(i), run=False) for i in range(3)]
    bench.loop.run()
    assert bench.launched_rows == [3]
    assert [one.values for one in sent] == [[0.0], [1.0], [2.0]]
    assert inline(bench) == 1


def test_batches_of_one_model_run_one_after_the_other_with_a_turn_of_the_loop_between() -> None:
    """Those who wait for the loop come between, and what they bring joins the next batch."""
    bench = Bench(ModelOptions(Limits(2)), inline_rows=8)
    sent = [bench.send(1, float(i), run=False) for i in range(3)]
    sent[0].then(lambda: bench.loop.call_soon(lambda: sent.append(bench.send(1, 3.0, run=False))))
    bench.loop.run()
    assert (inline(bench), bench.launched_rows) == (2, [2, 2])
    assert [one.values for one in sent] == [[0.0], [1.0], [2.0], [3.0]]


def test_nothing_runs_inline_beside_another_model_that_runs() -> None:
    slow = Bench(name="slow", threads=2)
    quick = Bench(beside=slow, name="quick", inline_rows=8)
    waiting = slow.send()
    beside = quick.send(1, 5.0)
    assert (inline(quick), beside.answered) == (0, False), "the other one runs"
    quick.finish()
    slow.finish()
    together = slow.send(run=False), quick.send(1, 6.0, run=False)
    slow.loop.run()
    assert inline(quick) == 0, "the other one came first, and runs"
    quick.finish()
    slow.finish()
    assert all(one.answered for one in (waiting, beside, *together))
    assert quick.send(1, 7.0).values == [7.0]
    assert inline(quick) == 1


def test_models_that_wait_together_run_inline_one_after_the_other_with_a_turn_of_the_loop_between() -> None:
    one = Bench(name="one", inline_rows=8)
    other = Bench(beside=one, name="other", inline_rows=8)
    sent = [one.send(1, 1.0, run=False), other.send(1, 2.0, run=False), one.send(1, 3.0, run=False)]
    sent[0].then(lambda: one.loop.call_soon(lambda: sent.append(other.send(1, 4.0, run=False))))
    one.loop.run()
    assert (inline(one), inline(other)) == (1, 1)
    assert [answered.values for answered in sent] == [[1.0], [2.0], [3.0], [4.0]]


def test_a_slot_of_its_own_runs_what_the_loop_runs_and_nothing_else() -> None:
    bench = Bench(inline_rows=4, own_inline_slot=True)
    own, (shared,) = bench.session.inline_slot, bench.session.slots
    assert bench.send(2, 3.0).values == [3.0, 3.0]
    large = bench.send(5, 1.0)
    beside = bench.send(1, 2.0)
    assert (own.ran_inline, len(own.batches), shared.done is not None) == (1, 1, True)
    bench.finish()
    assert [large.values, beside.values] == [[1.0] * 5, [2.0]]
    assert (own.ran_inline, len(shared.batches)) == (2, 1)
    assert len(bench.endpoint._free) == 1
    assert bench.endpoint._free.take() is shared


def test_an_engine_that_fails_inline_costs_its_own_batch() -> None:
    bench = Bench(inline_rows=4, width=1)
    (slot,) = bench.session.slots
    slot.fails = lambda batch: RuntimeError("out of luck")
    failed = bench.send()
    assert isinstance(failed.reply, InferenceFailed)
    assert "out of luck" in str(failed.reply)
    slot.fails = lambda batch: None
    assert bench.send(1, 2.0).values == [2.0]
    assert bench.device.threads_used == 0


@pytest.mark.parametrize("own_inline_slot", [False, True])
def test_values_that_fail_run_anew_one_by_one(own_inline_slot: bool) -> None:
    bench = Bench(inline_rows=4, own_inline_slot=own_inline_slot)
    bench.endpoint.fails_on_values = True
    slot = bench.session.all_slots[-1]
    slot.fails = lambda batch: RuntimeError("no such value") if 3.0 in batch["x"] else None
    sent = [bench.send(1, float(i), run=False) for i in range(4)]
    bench.loop.run()
    for _ in range(4):
        if bench.session.running:
            bench.finish(RuntimeError("no such value") if 3.0 in bench.session.running[0].inputs["x"] else None)
    assert [one.values for one in sent[:3]] == [[0.0], [1.0], [2.0]]
    assert "no such value" in str(sent[3].reply)


def test_a_buffer_that_refuses_rows_is_the_batchs_own_fault() -> None:
    bench = Bench(inline_rows=4)
    bench.session.slots[0].refuses = ValueError("no room")
    assert "no room" in str(bench.send().reply)
    assert bench.send(1, 1.0).values == [1.0]


def test_what_a_client_does_at_once_with_its_answer() -> None:
    """It sends another request, which is batched, and cancels one that is answered in the same batch."""
    bench = Bench(inline_rows=4)
    first, second = bench.send(1, 1.0, run=False), bench.send(1, 2.0, run=False)
    later: list[object] = []
    first.then(lambda: later.append(bench.send(1, 9.0, run=False)))
    first.then(lambda: bench.gateway.cancel(bench.endpoint, second.ticket))
    bench.loop.run()
    assert np.array_equal(first.values, [1.0])
    assert "cancelled" in str(second.reply)
    assert later[0].values == [9.0]  # type: ignore[attr-defined]
    assert bench.endpoint.in_flight == 0


def test_a_model_that_stops_while_it_answers_stops_afterwards() -> None:
    bench = Bench(inline_rows=4)
    stopped: list[bool] = []
    sent = bench.send(1, 1.0, run=False)
    sent.then(lambda: bench.endpoint.stop(lambda: stopped.append(True)))
    bench.loop.run()
    assert sent.values == [1.0]
    assert stopped == [True]
