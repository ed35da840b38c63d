"""Engines that run faster than they are handed to a thread, told from others by measuring them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import pytest

from app import inline
from app.inline import inline_rows
from engines.reference import Reference
from engines.runtime.openvino import OpenVinoSession, load_session
from tests.engines.conftest import Built
from tests.support.onnx_models import linear, slow, softmax_over_batch
from tests.support.servers import ROOT

Build = Callable[[onnx.ModelProto | bytes], Built]


@contextmanager
def loaded(built: Build, model: onnx.ModelProto) -> Iterator[tuple[OpenVinoSession, Built]]:
    done = built(model)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest)
    try:
        yield session, done
    finally:
        session.close()


def test_a_small_model_runs_inline_and_answers_the_same(built: Build) -> None:
    model = linear()
    with loaded(built, model) as (session, done):
        assert inline_rows(session, done.manifest, 32) >= 1
        x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
        for slot in (session.open_inline(), *session.slots):
            np.copyto(slot.bind({"x": x.shape})["x"], x)
            assert slot.run() is None
            np.testing.assert_allclose(slot.outputs()["y"], Reference(model)({"x": x})["y"], rtol=1e-5)


def test_what_runs_inline_runs_on_one_thread(built: Build) -> None:
    """Of the caller: the engine's own threads would be woken for each run, and spin on the caller's cores."""
    done = built(linear())
    session = load_session(done.cache.entry(done.manifest.key), done.manifest, streams=2)
    try:
        assert session.setting("INFERENCE_NUM_THREADS") >= 2
        assert inline_rows(session, done.manifest, 32) >= 1
        slot = session.inline_slot
        assert slot is not None
        assert slot not in session.slots
        assert slot.setting("INFERENCE_NUM_THREADS") == slot.setting("NUM_STREAMS") == 1
    finally:
        session.close()
    assert session.inline_slot is None


def test_a_large_one_does_not(built: Build) -> None:
    with loaded(built, slow()) as (session, done):
        assert inline_rows(session, done.manifest, 32) == 0
        assert session.inline_slot is None


def test_an_engine_that_is_too_slow_on_one_thread_is_freed(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "_LOOK_CLOSER", 1e9)
    with loaded(built, slow()) as (session, done):
        assert inline_rows(session, done.manifest, 32) == 0
        assert session.inline_slot is None


@pytest.mark.parametrize(
    ("most_us", "most_rows", "expected"), [(1e9, 32, 32), (1e9, 20, 20), (1e9, 1, 1), (1e9, 3, 3), (0.0, 32, 0)]
)
def test_rows_double_up_to_the_most(
    built: Build, monkeypatch: pytest.MonkeyPatch, most_us: float, most_rows: int, expected: int
) -> None:
    monkeypatch.setattr(inline, "INLINE_US", most_us)
    with loaded(built, linear()) as (session, done):
        assert inline_rows(session, done.manifest, most_rows) == expected


def test_rows_that_share_no_batch_run_one_at_a_time(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "INLINE_US", 1e9)
    with loaded(built, softmax_over_batch()) as (session, done):
        assert not done.manifest.proof.batchable
        assert inline_rows(session, done.manifest, 32) <= 1


def test_sizes_that_clients_choose_keep_a_model_off_the_loop(built: Build) -> None:
    with loaded(built, onnx.load(ROOT / "model_repo" / "japanese_vowels" / "1" / "model.onnx")) as (session, done):
        assert inline_rows(session, done.manifest, 32) == 0


def test_an_engine_that_raises_is_not_inline(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(built, linear()) as (session, done):
        monkeypatch.setattr(session.slots[0], "_answer", lambda: RuntimeError("broken"))
        assert inline_rows(session, done.manifest, 32) == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is all there is to be pinned to")
def test_a_run_leaves_its_thread_on_all_cores(built: Build) -> None:
    """Pinned, the loop would share the first core with every other engine, and start threads that are pinned too."""
    cores = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    with loaded(built, slow()) as (session, _):
        slot = session.open_inline()
        slot.bind({"x": (1, 4)})["x"][...] = 0
        caller, done = threading.get_native_id(), threading.Event()

        def watch() -> None:
            while not done.is_set():
                seen.append(os.sched_getaffinity(caller))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(20):
            assert slot.run() is None
        done.set()
        watcher.join()
    assert len(seen) > 20
    assert all(found == cores for found in seen)
