"""What goes wrong in a batch stays in that batch: cancels, broken engines, broken sinks. On a held engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from app.serving.errors import Cancelled, DeadlineExceeded, InferenceFailed, InvalidInput
from app.serving.limits import Limits, ModelOptions, QueueOptions
from tests.support.fakes import Bench, Sent

MEMBERS = 4
FIXED = 1


def batch_of_four(**keys: object) -> tuple[Bench, list[Sent]]:
    """Four requests of 1, 2, 3 and 4 rows whose values are 0 to 3, held in the queue."""
    bench = Bench(ModelOptions(Limits(max_batch_rows=16)), width=FIXED, **keys)  # type: ignore[arg-type]
    bench.device.hold()
    return bench, [bench.send(value + 1, value) for value in range(MEMBERS)]


def check_answers(sent: list[Sent], but: int = -1) -> None:
    for value, one in enumerate(sent):
        if value != but:
            assert one.values == [value] * (value + 1)


def breaks() -> None:
    raise ConnectionResetError("the socket is gone")


# -- clients that leave ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", range(MEMBERS))
def test_one_that_leaves_the_queue_is_never_launched_and_disturbs_nobody(leaver: int) -> None:
    bench, sent = batch_of_four()
    sent[leaver].cancel()
    assert isinstance(sent[leaver].reply, Cancelled)
    assert bench.endpoint.queue.rows == 10 - (leaver + 1)
    bench.release()
    assert leaver not in bench.session.launched[0]["x"]
    bench.finish()
    check_answers(sent, but=leaver)
    assert bench.stats.failures["CANCELED"] == 1


@pytest.mark.parametrize("leaver", range(MEMBERS))
def test_one_that_leaves_a_running_batch_disturbs_nobody(leaver: int) -> None:
    bench, sent = batch_of_four()
    bench.release()
    sent[leaver].cancel()
    assert isinstance(sent[leaver].reply, Cancelled)
    bench.finish()
    check_answers(sent, but=leaver)
    assert bench.stats.request_ns["success"].count == MEMBERS - 1
    assert bench.stats.request_ns["cancelled"].count == 1


@pytest.mark.parametrize("running", [False, True])
def test_when_all_leave_the_next_request_works(running: bool) -> None:
    bench, sent = batch_of_four()
    if running:
        bench.release()
    for one in sent:
        one.cancel()
    bench.release()
    if running:
        bench.finish()
    assert bench.launched_rows == ([10] if running else [])
    last = bench.send(1, 9)
    bench.finish()
    assert last.values == [9]
    assert bench.endpoint.in_flight == 0


def test_cancelling_twice_or_after_the_answer_changes_nothing() -> None:
    bench, sent = batch_of_four()
    sent[0].cancel()
    sent[0].cancel()
    bench.release()
    bench.finish()
    sent[1].cancel()
    assert isinstance(sent[0].reply, Cancelled)
    check_answers(sent, but=0)
    assert bench.stats.failures["CANCELED"] == 1


def test_one_that_leaves_on_its_answer_is_a_success_all_the_same() -> None:
    bench, sent = batch_of_four()
    for one in sent:
        one.then(one.cancel)
    bench.release()
    bench.finish()
    check_answers(sent)
    assert bench.stats.request_ns["success"].count == MEMBERS


def test_one_whose_answer_makes_another_leave_takes_only_that_one() -> None:
    bench, sent = batch_of_four()
    sent[0].then(sent[2].cancel)
    bench.release()
    bench.finish()
    assert isinstance(sent[2].reply, Cancelled)
    check_answers(sent, but=2)


def test_a_request_made_from_inside_an_expiry_cannot_lift_a_batch_over_its_limit() -> None:
    """The expiry of one model's request brings an urgent one to another whose batch was about to be chosen."""
    options = ModelOptions(Limits(max_batch_rows=4), QueueOptions(levels=2, default_level=2))
    bench = Bench(options, threads=1)
    other = Bench(ModelOptions(Limits(max_batch_rows=0)), beside=bench)
    bench.device.hold()
    for _ in range(4):
        bench.send(1, 1)
    expiring = other.send(1, timeout_ms=5)
    expiring.then(lambda: bench.send(4, 2, priority=1, run=False))
    bench.loop.now_ns += 5_000_000
    bench.release()
    assert bench.launched_rows == [4]
    bench.finish()
    assert bench.launched_rows == [4, 4]


def test_a_request_made_from_inside_a_failure_cannot_either() -> None:
    options = ModelOptions(Limits(max_batch_rows=4), QueueOptions(levels=2, default_level=2))
    broken = Bench(ModelOptions(Limits(max_batch_rows=0)))
    bench = Bench(options, beside=broken)
    broken.session.slots[0].refuses = ValueError("too large")
    bench.device.hold()
    failing = broken.send(1)
    for _ in range(4):
        bench.send(1, 1)
    failing.then(lambda: bench.send(4, 2, priority=1, run=False))
    bench.release()
    assert failing.answered
    bench.finish()
    assert bench.launched_rows == [4, 4]


# -- engines that fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("no memory"), SystemExit("no memory"), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_an_engine_that_raises_fails_its_own_batch_and_the_next_works(error: BaseException) -> None:
    bench, sent = batch_of_four()
    bench.release()
    next_one = bench.send(1, 9)
    bench.finish(error)
    for one in sent:
        assert isinstance(one.reply, InferenceFailed)
        assert str(one.reply).startswith("model 'm' failed on this batch: ")
    bench.finish()
    assert next_one.values == [9]
    assert bench.stats.failures["BACKEND"] == MEMBERS


def test_a_failure_takes_the_batch_of_no_other_slot() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=0)), slots=2)
    sent = [bench.send(1, 1), bench.send(1, 2)]
    slots = bench.session.running
    broken = int(slots[0].inputs["x"][0, 0]) - 1
    slots[0].finish(RuntimeError("broken"))
    slots[1].finish()
    bench.loop.run()
    assert isinstance(sent[broken].reply, InvalidInput)
    assert sent[1 - broken].values == [2 - broken]


def test_an_engine_that_refuses_the_shapes_fails_that_batch_alone() -> None:
    bench, sent = batch_of_four()
    bench.session.slots[0].refuses = ValueError("too large")
    bench.release()
    assert [str(one.reply) for one in sent] == ["model 'm' failed on this batch: too large"] * MEMBERS
    last = bench.send(1, 9)
    bench.finish()
    assert last.values == [9]


def test_a_launch_that_raises_after_all_is_answered_once() -> None:
    bench, sent = batch_of_four()
    slot = bench.session.slots[0]
    launch = slot.launch

    def launches_and_raises(done: Callable[[BaseException | None], None]) -> None:
        launch(done)
        raise OSError("the driver is gone")

    slot.launch = launches_and_raises  # type: ignore[method-assign]
    bench.release()
    assert all(isinstance(one.reply, InferenceFailed) for one in sent)
    slot.launch = launch  # type: ignore[method-assign]
    slot.finish()
    last = bench.send(1, 9)
    bench.finish()
    assert last.values == [9]


@pytest.mark.parametrize("first_error", [None, RuntimeError("broken")])
def test_done_called_twice_counts_once(first_error: BaseException | None) -> None:
    bench, sent = batch_of_four()
    bench.release()
    waiting = bench.send(1, 9)
    bench.session.running[0].finish(first_error, times=2)
    bench.loop.run()
    assert bench.device.threads_used == 1
    assert not waiting.answered
    bench.finish()
    assert waiting.values == [9]
    assert all(len(one.sink.replies) == 1 for one in sent)
    assert bench.device.threads_used == 0
    assert len(bench.endpoint._free) == 1


def wrong_rows(inputs: dict) -> dict:
    return {"y": inputs["x"][:-1]}


def no_dimensions(inputs: dict) -> dict:
    return {"y": np.float32(1).reshape(())}


def no_output(inputs: dict) -> dict:
    return {}


def raises(inputs: dict) -> dict:
    raise MemoryError("outputs do not fit")


@pytest.mark.parametrize("function", [wrong_rows, no_dimensions, no_output, raises])
def test_wrong_outputs_fail_that_batch_alone(function: Callable[[dict], dict]) -> None:
    bench, sent = batch_of_four()
    slot = bench.session.slots[0]
    right, slot.function = slot.function, function
    bench.release()
    bench.finish()
    assert all(isinstance(one.reply, InferenceFailed) for one in sent)
    slot.function = right
    last = bench.send(1, 9)
    bench.finish()
    assert last.values == [9]
    assert bench.stats.executions == 1


def test_a_shape_that_never_ran_is_the_clients_fault_and_one_that_ran_the_engines() -> None:
    bench = Bench(width=-1)
    first = bench.send(1, width=7)
    bench.finish(RuntimeError("kernel size can't be greater than input"))
    assert isinstance(first.reply, InvalidInput)
    assert str(first.reply) == (
        "model 'm' cannot run on inputs of this shape: 'x' [7] (a row): kernel size can't be greater than input"
    )
    bench.send(1, width=5)
    bench.finish()
    again = bench.send(1, width=5)
    bench.finish(RuntimeError("broken"))
    assert isinstance(again.reply, InferenceFailed)


def test_with_fixed_shapes_a_failure_is_always_the_engines() -> None:
    bench = Bench(width=FIXED)
    sent = bench.send(1)
    bench.finish(RuntimeError("broken"))
    assert isinstance(sent.reply, InferenceFailed)


# -- sinks that break --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError("broken")], ids=["answer", "failure"])
@pytest.mark.parametrize("member", range(MEMBERS))
def test_a_sink_that_raises_loses_its_own_answer_only(member: int, error: BaseException | None) -> None:
    bench, sent = batch_of_four()
    sent[member].then(breaks)
    bench.release()
    bench.finish(error)
    assert all(len(one.sink.replies) == 1 for one in sent)
    last = bench.send(1, 9)
    bench.finish()
    assert last.values == [9]
    assert bench.endpoint.in_flight == 0


def test_a_sink_that_raises_on_expiry_or_cancel_stops_no_other_expiry() -> None:
    bench, _ = batch_of_four()
    expiring = [bench.send(1, timeout_ms=5) for _ in range(2)]
    leaving = bench.send(1)
    for one in (expiring[0], leaving):
        one.then(breaks)
    leaving.cancel()
    bench.advance_ms(5)
    assert [type(one.reply) for one in expiring] == [DeadlineExceeded] * 2
