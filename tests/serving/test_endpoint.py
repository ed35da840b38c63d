"""One endpoint on a held engine: the order of its answers, and how it stops."""

from __future__ import annotations

import pytest

from app.serving.errors import InferenceFailed, Stopping
from app.serving.limits import Limits, ModelOptions
from tests.support.fakes import Bench

ORDERED = ModelOptions(Limits(max_batch_rows=0), preserve_ordering=True)


# -- order -------------------------------------------------------------------------------------------------------


def test_preserved_order_holds_back_what_finished_early() -> None:
    bench = Bench(ORDERED, slots=2)
    first, second, third = (bench.send(1, value) for value in range(3))
    early = next(slot for slot in bench.session.running if slot.inputs["x"][0, 0] == 1)
    early.finish()
    bench.loop.run()
    assert not second.answered
    assert bench.launched_rows == [1, 1], "the slot keeps its outputs until they are sent"
    order: list[int] = []
    for number, one in enumerate((first, second, third)):
        one.then(lambda number=number: order.append(number))
    bench.finish()
    bench.finish()
    assert order == [0, 1, 2]
    assert [one.values for one in (first, second, third)] == [[0], [1], [2]]


def test_preserved_order_is_kept_by_a_batch_that_fails() -> None:
    bench = Bench(ORDERED, slots=2, width=1)
    first, second = bench.send(1, 1), bench.send(1, 2)
    slots = {slot.inputs["x"][0, 0]: slot for slot in bench.session.running}
    slots[2].finish()
    bench.loop.run()
    slots[1].finish(RuntimeError("broken"))
    bench.loop.run()
    assert isinstance(first.reply, InferenceFailed)
    assert second.values == [2]


def test_without_it_the_first_to_finish_is_the_first_to_answer() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=0)), slots=2)
    first, second = bench.send(1, 1), bench.send(1, 2)
    next(slot for slot in bench.session.running if slot.inputs["x"][0, 0] == 2).finish()
    bench.loop.run()
    assert second.values == [2]
    assert not first.answered


# -- stopping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
def test_stop_answers_all_it_accepted_then_tells_once(ordered: bool) -> None:
    told: list[int] = []
    bench = Bench(ModelOptions(Limits(max_batch_rows=2), preserve_ordering=ordered))
    sent = [bench.send(1, value) for value in range(5)]
    bench.endpoint.stop(lambda: told.append(sum(one.answered for one in sent)))
    with pytest.raises(Stopping, match="Server is stopping, scheduler for m has stopped accepting"):
        bench.send()
    while bench.session.running:
        assert told == []
        bench.finish()
    assert [one.values for one in sent] == [[value] for value in range(5)]
    assert told == [5]
    bench.loop.advance(10**10)
    with pytest.raises(Stopping):
        bench.send()
    assert told == [5]


def test_stop_of_an_idle_endpoint_tells_at_once() -> None:
    told: list[str] = []
    bench = Bench()
    bench.endpoint.stop(lambda: told.append("idle"))
    bench.loop.run()
    assert told == ["idle"]


def test_stop_waits_for_a_queue_that_empties_by_expiry_and_cancel() -> None:
    told: list[str] = []
    bench = Bench()
    bench.device.hold()
    sent = [bench.send() for _ in range(4)]
    bench.send(1, timeout_ms=5)
    bench.endpoint.stop(lambda: told.append("idle"))
    for one in sent:
        one.cancel()
    assert told == []
    bench.advance_ms(5)
    assert told == ["idle"]


def test_stop_does_not_wait_for_requests_held_back_by_a_test() -> None:
    told: list[str] = []
    bench = Bench()
    bench.endpoint.hold_requests = 100
    sent = bench.send(1, 3)
    bench.endpoint.stop(lambda: told.append("idle"))
    bench.loop.run()
    bench.finish()
    assert sent.values == [3]
    assert told == ["idle"]


def test_a_second_stop_takes_the_place_of_the_first() -> None:
    told: list[str] = []
    bench = Bench()
    bench.send()
    bench.endpoint.stop(lambda: told.append("first"))
    bench.endpoint.stop(lambda: told.append("second"))
    bench.finish()
    assert told == ["second"]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_a_stop_from_inside_an_answer_waits_for_the_rest_of_the_batch(
    ordered: bool, error: BaseException | None
) -> None:
    answered: list[int] = []
    bench = Bench(ModelOptions(Limits(max_batch_rows=4), preserve_ordering=ordered), width=1)
    bench.device.hold()
    sent = [bench.send(1, value) for value in range(4)]
    sent[0].then(lambda: bench.endpoint.stop(lambda: answered.append(sum(one.answered for one in sent))))
    bench.release()
    bench.finish(error)
    assert answered == [4]


# -- an engine for fewer rows ------------------------------------------------------------------------------------


def test_no_batch_is_formed_that_the_engine_does_not_take_and_a_larger_request_goes_alone() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=32)), most_rows=8)
    bench.device.hold()
    sent = [bench.send(rows, value) for value, rows in enumerate((3, 3, 3, 20, 8, 1))]
    bench.release()
    while bench.session.running:
        bench.finish()
    assert bench.launched_rows == [6, 3, 20, 8, 1]
    assert [one.values for one in sent] == [[value] * rows for value, rows in enumerate((3, 3, 3, 20, 8, 1))]


@pytest.mark.parametrize(("most_rows", "expected"), [(0, 32), (64, 32), (32, 32), (8, 8)])
def test_limits_within_those_of_an_engine(most_rows: int, expected: int) -> None:
    limits = Limits(max_batch_rows=32, preferred_rows=(16, 4), max_queue_delay_ns=5).within(most_rows)
    assert limits == Limits(expected, (4,) if expected == 8 else (16, 4), 5)
    assert Limits(max_batch_rows=0).within(8).max_batch_rows == 0, "requests run one at a time"
