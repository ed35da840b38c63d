"""One device for many models: threads, turns, holding, and letting go."""

from __future__ import annotations

import gc
import weakref

import pytest

from app.serving.device import Device
from app.serving.errors import DeadlineExceeded
from app.serving.limits import Limits, ModelOptions
from tests.support.fakes import MS, Bench, HeldLoop, HeldSession, HeldSlot, endpoint_on, ticket

SINGLE = ModelOptions(Limits(max_batch_rows=0))
QUANTUM_NS = 2 * MS


def running(*benches: Bench) -> list[int]:
    return [len(bench.session.running) for bench in benches]


def work(costs_ns: dict[int, int], benches: list[Bench], duration_ns: int) -> list[int]:
    """Thread time that each model used while all always had work; `costs_ns` by the bench's position."""
    loop, ends_ns, used = benches[0].loop, {}, [0] * len(benches)
    until_ns = loop.now_ns + duration_ns
    while loop.now_ns < until_ns:
        for bench in benches:
            while bench.endpoint.queue.requests < 4:
                bench.send()
        for index, bench in enumerate(benches):
            for slot in bench.session.running:
                ends_ns.setdefault(slot, (loop.now_ns + costs_ns[index], index))
        slot: HeldSlot = min(ends_ns, key=lambda one: ends_ns[one][0])
        end_ns, index = ends_ns.pop(slot)
        loop.advance(end_ns - loop.now_ns)
        slot.finish()
        loop.run()
        used[index] += costs_ns[index] * benches[index].endpoint.threads_per_batch
    return used


# -- threads -----------------------------------------------------------------------------------------------------


def test_running_batches_do_not_exceed_the_threads() -> None:
    bench = Bench(SINGLE, threads=4, slots=8)
    for _ in range(8):
        bench.send()
    assert running(bench) == [4]
    assert bench.device.threads_used == 4
    bench.session.running[0].finish()
    bench.loop.run()
    assert running(bench) == [4]


def test_a_batch_that_does_not_fit_waits_for_its_threads() -> None:
    one = Bench(SINGLE, threads=4, threads_per_batch=3)
    two = Bench(SINGLE, beside=one, threads_per_batch=2)
    one.send()
    two.send()
    assert running(one, two) == [1, 0]
    one.finish()
    assert running(one, two) == [0, 1]


def test_a_batch_wider_than_the_device_runs_alone() -> None:
    wide = Bench(SINGLE, threads=2, threads_per_batch=8)
    narrow = Bench(SINGLE, beside=wide)
    wide.send()
    narrow.send()
    assert running(wide, narrow) == [1, 0]
    wide.send()
    wide.advance_ms(5)
    wide.finish()
    assert running(wide, narrow) == [0, 1]
    narrow.finish()
    assert running(wide, narrow) == [1, 0]


def test_no_model_waits_while_another_runs_two_batches() -> None:
    greedy = Bench(SINGLE, threads=2, slots=2)
    for _ in range(4):
        greedy.send()
    assert running(greedy) == [2]
    others = [Bench(SINGLE, beside=greedy, threads_per_batch=2) for _ in range(2)]
    for other in others:
        other.send()
    assert running(greedy, *others) == [2, 1, 1], "on borrowed threads"
    greedy.session.running[0].finish()
    greedy.loop.run()
    assert running(greedy, *others) == [1, 1, 1], "what was borrowed is given back first"


def test_one_that_runs_nothing_comes_before_one_that_runs_something() -> None:
    first = Bench(SINGLE, threads=2, slots=2)
    second = Bench(SINGLE, beside=first)
    first.send()
    first.device.hold()
    first.send()
    second.send()
    first.device.release()
    first.loop.run()
    assert running(first, second) == [1, 1]


def test_threads_are_given_back_by_a_batch_that_failed_or_never_started() -> None:
    bench = Bench(SINGLE, threads=1)
    bench.session.slots[0].refuses = MemoryError("no room")
    bench.send()
    bench.send()
    bench.finish(RuntimeError("broken"))
    assert bench.device.threads_used == 0


# -- turns -------------------------------------------------------------------------------------------------------


def test_models_of_unequal_cost_get_equal_device_time() -> None:
    """Credit is given to all alike, and what is left of it lies in (-cost, quantum]; what runs is charged already."""
    costs_ns = {0: 1 * MS, 1: 7 * MS, 2: 40 * MS}
    first = Bench(SINGLE, threads=2, threads_per_batch=2)
    benches = [first, *(Bench(SINGLE, beside=first, threads_per_batch=2) for _ in range(2))]
    used = work(costs_ns, benches, 10_000 * MS)
    assert max(used) - min(used) <= QUANTUM_NS + 2 * max(costs_ns.values())


def test_narrow_batches_do_not_starve_a_wide_one() -> None:
    """Two threads, always one taken: the wide model's turn must come although it never finds both free by chance."""
    narrow = Bench(SINGLE, threads=2)
    other = Bench(SINGLE, beside=narrow)
    wide = Bench(SINGLE, beside=narrow, threads_per_batch=2)
    used = work({0: 5 * MS, 1: 7 * MS, 2: 5 * MS}, [narrow, other, wide], 4000 * MS)
    assert min(used) * 4 >= sum(used), f"{used}: a third each would be fair"


def test_waiting_for_a_turn_is_bounded_by_the_others_batches() -> None:
    first = Bench(SINGLE, threads=1)
    others = [Bench(SINGLE, beside=first) for _ in range(3)]
    work(dict.fromkeys(range(4), 3 * MS), [first, *others], 300 * MS)
    late = Bench(SINGLE, beside=first)
    mine = late.send()
    begun = sum(len(bench.session.launched) for bench in (first, *others))
    while not running(late)[0]:
        for bench in (first, *others):
            bench.send()
        first.loop.advance(3 * MS)
        for bench in (first, *others):
            bench.finish()
    late.finish()
    assert mine.answered
    assert sum(len(bench.session.launched) for bench in (first, *others)) - begun <= 4


def test_a_request_that_comes_while_its_model_runs_is_not_time_away() -> None:
    """A model whose queue is empty for a moment in each batch pays for its batches like any other."""
    short = Bench(SINGLE, threads=1)
    long = Bench(SINGLE, beside=short)
    used = {short: 0, long: 0}
    for bench in used:
        bench.send()
    for _ in range(3000):
        (bench,) = (one for one in used if one.session.running)
        cost_ns = 1 * MS if bench is short else 40 * MS
        short.loop.advance(cost_ns // 2)
        for one in used:
            if not one.endpoint.queue.requests:
                one.send()
        short.loop.advance(cost_ns - cost_ns // 2)
        used[bench] += cost_ns
        bench.finish()
    assert abs(used[short] - used[long]) <= QUANTUM_NS + 40 * MS


def test_an_idle_model_saves_no_credit() -> None:
    busy = Bench(SINGLE, threads=1)
    idle = Bench(SINGLE, beside=busy)
    work({0: 5 * MS}, [busy], 1000 * MS)
    busy.finish()
    assert work({0: 5 * MS, 1: 5 * MS}, [busy, idle], 100 * MS)[1] <= 60 * MS


# -- holding and letting go --------------------------------------------------------------------------------------


def test_a_held_device_launches_nothing_and_deadlines_still_fire() -> None:
    bench = Bench(ModelOptions(Limits(8)))
    bench.device.hold()
    expiring, waiting = bench.send(1, timeout_ms=5), bench.send(1)
    bench.advance_ms(5)
    assert isinstance(expiring.reply, DeadlineExceeded)
    assert running(bench) == [0]
    bench.device.release()
    bench.loop.run()
    assert running(bench) == [1]
    bench.finish()
    assert waiting.answered


def test_deadlines_fire_while_every_thread_is_taken() -> None:
    bench = Bench(SINGLE, threads=1)
    other = Bench(SINGLE, beside=bench)
    bench.send()
    waiting = other.send(1, timeout_ms=5)
    bench.advance_ms(5)
    assert isinstance(waiting.reply, DeadlineExceeded)


def test_many_wakes_are_one_look() -> None:
    loop = HeldLoop()
    device = Device(loop, 1, clock=lambda: loop.now_ns)
    session = HeldSession()
    endpoint = endpoint_on(device, session)
    for _ in range(5):
        endpoint.submit(ticket(loop)[0])
    loop.run()
    assert [len(batch["x"]) for batch in session.launched] == [5]


def test_the_timer_is_for_the_earliest_of_delays_and_deadlines() -> None:
    delayed = Bench(ModelOptions(Limits(8, max_queue_delay_ns=20 * MS)))
    hasty = Bench(SINGLE, beside=delayed)
    delayed.send()
    hasty.send()
    expiring = hasty.send(1, timeout_ms=10)
    delayed.advance_ms(10)
    assert expiring.answered
    assert running(delayed) == [0]
    delayed.advance_ms(10)
    assert running(delayed) == [1]


def test_one_timer_is_enough() -> None:
    bench = Bench(SINGLE, threads=1)
    bench.send()
    for timeout_ms in range(20, 10, -1):
        bench.send(1, timeout_ms=timeout_ms)
    assert bench.loop.timers == 1
    bench.finish()
    bench.advance_ms(100)
    assert bench.loop.timers == 0


@pytest.mark.parametrize("was_busy", [True, False])
def test_a_detached_endpoint_is_let_go(was_busy: bool) -> None:
    loop = HeldLoop()
    device = Device(loop, 1, clock=lambda: loop.now_ns)
    session = HeldSession()
    endpoint = endpoint_on(device, session)
    if was_busy:
        endpoint.submit(ticket(loop, timeout_ns=100)[0])
        loop.run()
        session.running[0].finish()
        loop.run()
    endpoint.stop(lambda: None)
    loop.run()
    device.detach(endpoint)
    gone = weakref.ref(endpoint)
    del endpoint, session
    gc.collect()
    assert gone() is None
