"""Random arrivals, cancels, deadlines and failures over three models on one device; the rules hold at every step."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.errors import Cancelled, DeadlineExceeded, InferenceFailed, InvalidInput, Rejected
from app.serving.limits import Limits, ModelOptions, QueueOptions, QueuePolicy
from app.serving.policy import Dispatch, decide
from tests.support.fakes import MS, Bench, HeldSlot, Sent

THREADS = 3
POISON = 3
"""Requests whose number it divides make every batch of the last model fail."""
POLICIES = MappingProxyType({1: QueuePolicy(max_queue_requests=3), 3: QueuePolicy(0, 8 * MS, delay_expired=True)})
LEVELS = QueueOptions(max_rows=20, levels=3, default_level=2, level_policies=POLICIES)

OPTIONS = {
    "plain": (ModelOptions(Limits(4)), ModelOptions(Limits(0)), ModelOptions(Limits(3))),
    "delays and levels": (
        ModelOptions(Limits(4, (2, 3), 3 * MS), LEVELS),
        ModelOptions(Limits(0), LEVELS),
        ModelOptions(Limits(5, (), 2 * MS), QueueOptions(policy=QueuePolicy(default_timeout_ns=6 * MS))),
    ),
    "ordered": tuple(
        ModelOptions(Limits(rows, preferred, delay_ms * MS), LEVELS, preserve_ordering=True)
        for rows, preferred, delay_ms in [(4, (), 0), (0, (), 0), (3, (2,), 5)]
    ),
}

MODELS = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("send"), MODELS, st.integers(1, 6), st.integers(1, 2), st.integers(0, 4), st.integers(0, 6)),
    st.tuples(st.just("send"), MODELS, st.integers(1, 2), st.just(1), st.just(0), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 200)),
    st.tuples(st.just("finish"), st.integers(0, 9), st.sampled_from(["well", "well", "well", "twice", "broken"])),
    st.tuples(st.just("refuse"), MODELS),
    st.tuples(st.just("advance"), st.integers(0, 4 * MS)),
    st.tuples(st.just("hold"), st.booleans()),
)


def doubled(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * 2}


@dataclass
class Model:
    """A bench and what was asked of it. The values of a request are its number, so every row names its owner."""

    bench: Bench
    sent: dict[int, Sent] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    submitted: int = 0


class Traffic:
    def __init__(self, options: tuple[ModelOptions, ...], inline_rows: int, own_inline_slot: bool) -> None:
        shapes = [{"slots": 3}, {"slots": 1, "threads_per_batch": 2}, {"slots": 2, "threads_per_batch": 5}]
        of = {"function": doubled, "inline_rows": inline_rows, "own_inline_slot": own_inline_slot}
        first = Bench(options[0], threads=THREADS, name="0", **of, **shapes[0])
        rest = [Bench(options[i], beside=first, name=str(i), **of, **shapes[i]) for i in (1, 2)]
        self.models = [Model(bench) for bench in (first, *rest)]
        self.models[2].bench.endpoint.fails_on_values = True
        self.loop, self.device, self.number, self.held = first.loop, first.device, 0, False
        self.broken: list[AssertionError] = []
        for model in self.models:
            for slot in model.bench.session.all_slots:
                slot.on_launch = partial(self._launched, model)
                slot.fails = partial(self._inline_failure, slot)

    def _launched(self, model: Model, batch: dict[str, np.ndarray]) -> None:
        """Keeps what it finds: the endpoint takes whatever is raised here for a broken engine."""
        try:
            self._check_launch(model, batch["x"])
        except AssertionError as error:
            self.broken.append(error)

    def _check_launch(self, model: Model, x: np.ndarray) -> None:
        endpoint = model.bench.endpoint
        limit = endpoint.options.limits.max_batch_rows
        owners = list(dict.fromkeys(x[:, 0].tolist()))
        assert limit == 0 or len(x) <= limit
        assert limit > 0 or len(owners) == 1
        for number in owners:
            assert not model.sent[number].answered, "launched after its end"
            assert model.sizes[number] == (int((x[:, 0] == number).sum()), x.shape[1])
        assert not self.held
        if self.device.threads_used > THREADS:
            alone = self.device.threads_used == endpoint.threads_per_batch
            assert alone or (endpoint.running == 1 and any(m.bench.endpoint.running >= 2 for m in self.models))

    def step(self, kind: str, *args: int) -> None:
        getattr(self, f"_{kind}")(*args)
        self.loop.run()
        self._check()
        assert not self.broken, self.broken

    def _send(self, index: int, rows: int, width: int, priority: int, timeout_ms: int) -> None:
        model, self.number = self.models[index], self.number + 1
        model.submitted += 1
        model.sizes[self.number] = (rows, width)
        with contextlib.suppress(Rejected, InvalidInput):
            model.sent[self.number] = model.bench.send(
                rows, self.number, width=width, priority=priority, timeout_ms=timeout_ms, run=False
            )

    def _cancel(self, index: int) -> None:
        live = [one for model in self.models for one in model.sent.values() if not one.answered]
        if live:
            live[index % len(live)].cancel()

    def _finish(self, index: int, how: str) -> None:
        running = [slot for model in self.models for slot in model.bench.session.running]
        if running:
            self._finish_slot(running[index % len(running)], how)

    def _finish_slot(self, slot: HeldSlot, how: str) -> None:
        """The last model fails for its own requests only, and for these always."""
        poisoned = any(number % POISON == 0 for number in slot.inputs["x"][:, 0])
        picky = slot in self.models[2].bench.session.slots
        broken = poisoned if picky else how == "broken"
        slot.finish(RuntimeError("broken") if broken else None, times=2 if how == "twice" else 1)

    def _inline_failure(self, slot: HeldSlot, batch: dict[str, np.ndarray]) -> RuntimeError | None:
        """As a batch ends that a test does not end itself; of the others, each eleventh fails."""
        numbers = batch["x"][:, 0]
        picky = slot in self.models[2].bench.session.all_slots
        broken = (numbers % POISON == 0).any() if picky else numbers.sum() % 11 == 0
        return RuntimeError("broken") if broken else None

    def _refuse(self, index: int) -> None:
        for slot in self.models[index % 2].bench.session.slots:
            if slot.done is None:
                slot.refuses = ValueError("refused")

    def _advance(self, duration_ns: int) -> None:
        self.loop.advance(duration_ns)

    def _hold(self, held: bool) -> None:
        self.held = held
        if held:
            self.device.hold()
        else:
            self.device.release()

    def _check(self) -> None:
        """Rules that hold whenever the loop has nothing to do."""
        endpoints = [model.bench.endpoint for model in self.models]
        assert self.device.threads_used == sum(e.running * e.threads_per_batch for e in endpoints)
        for model in self.models:
            endpoint = model.bench.endpoint
            live = sum(not one.answered for one in model.sent.values())
            assert live <= endpoint.in_flight
            assert endpoint.queue.rows == sum(t.rows for group in endpoint.queue.groups() for t in group)
        if self.held:
            return
        crowded = any(endpoint.running >= 2 for endpoint in endpoints)
        for endpoint in endpoints:
            ready = endpoint._free and any(
                isinstance(decide(group, endpoint.options.limits, self.loop.now_ns), Dispatch)
                for group in endpoint.queue.groups()
            )
            if ready and not endpoint.running:
                assert not crowded, "waits while another runs two batches"
                assert self.device.threads_used, "waits for nothing"

    def end(self) -> None:
        """Stop all, finish all, and look at every answer."""
        told: list[str] = []
        self._hold(False)
        for model in self.models:
            model.bench.endpoint.stop(lambda model=model: told.append(model.bench.endpoint.model))
        for _ in range(2000):
            self.loop.advance(10 * MS)
            running = [slot for model in self.models for slot in model.bench.session.running]
            for slot in running:
                self._finish_slot(slot, "well")
            self.loop.run()
            if not running and len(told) == len(self.models):
                break
        assert sorted(told) == ["0", "1", "2"]
        assert self.device.threads_used == 0
        assert not self.broken, self.broken
        for model in self.models:
            self._check_answers(model)

    def _check_answers(self, model: Model) -> None:
        outcomes = dict.fromkeys(("success", "expired", "cancelled", "failed"), 0)
        kinds = {Cancelled: "cancelled", DeadlineExceeded: "expired", InferenceFailed: "failed", InvalidInput: "failed"}
        for number, one in model.sent.items():
            reply = one.reply  # exactly one
            if model is self.models[2] and number % POISON == 0:
                assert not isinstance(reply, dict)
            elif model is self.models[2]:
                assert not isinstance(reply, InvalidInput), "failed by the company it kept"
            if isinstance(reply, dict):
                assert np.array_equal(reply["y"], np.full(model.sizes[number], 2 * number, np.float32))
                outcomes["success"] += 1
            else:
                outcomes[kinds[type(reply)]] += 1
        stats, endpoint = model.bench.stats, model.bench.endpoint
        refused = model.submitted - len(model.sent)
        assert {name: stats.request_ns[name].count for name in outcomes} == outcomes
        assert stats.request_ns["rejected"].count == refused
        assert stats.request_ns["success"].count + sum(stats.failures.values()) == model.submitted
        assert (endpoint.queue.rows, endpoint.queue.requests, endpoint.in_flight) == (0, 0, 0)
        assert endpoint.queue.next_deadline_ns() is None
        assert len(endpoint._free) == endpoint.instances


@pytest.mark.parametrize(("inline_rows", "own_inline_slot"), [(0, False), (3, False), (3, True)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_request_is_answered_once_and_with_its_own_rows(
    options: tuple[ModelOptions, ...], inline_rows: int, own_inline_slot: bool
) -> None:
    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(st.lists(STEPS, min_size=10, max_size=80))
    def run(steps: list[tuple]) -> None:
        nonlocal ran_inline
        traffic = Traffic(options, inline_rows, own_inline_slot)
        for step in steps:
            traffic.step(*step)
        traffic.end()
        ran_inline += sum(slot.ran_inline for model in traffic.models for slot in model.bench.session.all_slots)

    ran_inline = 0
    run()
    assert bool(ran_inline) == bool(inline_rows)
