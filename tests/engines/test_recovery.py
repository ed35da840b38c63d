"""After a run that raised, the engine answers as before it: on one stream and on several, and whoever asks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import EngineFailed
from engines.reference import Arrays, Reference
from engines.runtime.openvino import load_session
from tests.engines.conftest import Built, run_slot
from tests.support.onnx_models import FLOAT, build, place
from tests.support.servers import running

Build = Callable[[onnx.ModelProto | bytes], Built]
F32, INT64 = np.float32, TensorProto.INT64
make = helper.make_node
WEIGHTS = np.random.default_rng(0).standard_normal((30, 3)).astype(F32)


def summed_along() -> onnx.ModelProto:
    """An axis that the data does not have makes the engine raise, in the middle of the graph."""
    nodes = [
        make("Relu", ["x"], ["p"]), make("CumSum", ["p", "a"], ["c"]), make("MatMul", ["c", "w"], ["y"]),
    ]  # fmt: skip
    inputs = {"x": (FLOAT, ["N", 30]), "a": (INT64, [])}
    return build(nodes, inputs, {"y": (FLOAT, ["N", 3])}, {"w": WEIGHTS})


def picky() -> onnx.ModelProto:
    """y = x, and the engine raises where an n is beyond 100. A batch fails for all, though it is one row's fault."""
    nodes = [
        make("ReduceMax", ["n"], ["most"], keepdims=0), make("Sub", ["most", "hundred"], ["over"]),
        make("Max", ["over", "zero"], ["axis"]), make("CumSum", ["zeros", "axis"], ["nothing"]),
        make("ReduceSum", ["nothing"], ["none"], keepdims=0), make("Add", ["x", "none"], ["y"]),
    ]  # fmt: skip
    constants = {"hundred": np.array(100), "zero": np.array(0), "zeros": np.zeros((1, 1), F32)}
    return build(nodes, {"x": (FLOAT, ["N", 4]), "n": (INT64, ["N"])}, {"y": (FLOAT, ["N", 4])}, constants)


def sums() -> onnx.ModelProto:
    """Two inputs whose widths have to be equal, which the shapes alone do not say."""
    nodes = [
        make("Relu", ["a"], ["ra"]), make("Tanh", ["b"], ["tb"]), make("Add", ["ra", "tb"], ["s"]),
        make("ReduceSum", ["s", "one"], ["y"], keepdims=0),
    ]  # fmt: skip
    inputs = {"a": (FLOAT, ["N", "T"]), "b": (FLOAT, ["N", "S"])}
    return build(nodes, inputs, {"y": (FLOAT, ["N"])}, {"one": np.array([1])})


def ask_axes(rng: np.random.Generator, bad: bool) -> Arrays:
    rows = int(rng.integers(1, 6))
    return {"x": rng.standard_normal((rows, 30)).astype(F32), "a": np.array(7 if bad else 1)}


def ask_widths(rng: np.random.Generator, bad: bool) -> Arrays:
    rows, width = int(rng.integers(1, 6)), int(rng.integers(2, 9))
    return {"a": rng.standard_normal((rows, width)).astype(F32),
            "b": rng.standard_normal((rows, width + 2 * bad)).astype(F32)}  # fmt: skip


CASES = {"values": (summed_along, ask_axes), "shapes": (sums, ask_widths)}


def check(reference: Reference, ask: Arrays, got: Arrays) -> None:
    np.testing.assert_allclose(got["y"], reference(ask)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_good_requests_between_bad_ones(case: str, streams: int, built: Build) -> None:
    model, ask = CASES[case][0](), CASES[case][1]
    done, reference, rng = built(model), Reference(model), np.random.default_rng(1)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest, streams=streams)
    try:
        for _ in range(40):
            for slot in session.slots:
                first = ask(rng, False)
                check(reference, first, run_slot(slot, first))
                with pytest.raises(EngineFailed):
                    run_slot(slot, ask(rng, True))
                check(reference, first, run_slot(slot, first))
    finally:
        session.close()


@pytest.mark.parametrize("instances", [2, 4])
def test_good_requests_beside_bad_ones(instances: int, built: Build) -> None:
    """Of four on two streams, some wait in the engine: the stream that was spoilt takes them before anybody knows."""
    model = summed_along()
    done, reference = built(model), Reference(model)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest, streams=2, instances=instances)
    failures: list[BaseException] = []

    def client(number: int) -> None:
        rng, slot = np.random.default_rng(number), session.slots[number]
        try:
            for _ in range(60):
                bad = bool(rng.random() < 0.3)
                ask = ask_axes(rng, bad)
                if bad:
                    with pytest.raises(EngineFailed, match="axis"):
                        run_slot(slot, ask)
                else:
                    check(reference, ask, run_slot(slot, ask))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(instances)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    assert not failures, failures[0]


def test_a_run_that_raised_unnoticed_is_known_to_those_after_it(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits for it is held up, while the spoilt stream runs the next request."""
    model = sums()
    done, reference, rng = built(model), Reference(model), np.random.default_rng(5)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest, streams=1, instances=2)
    late, other = session.slots
    run, has_raised, go_on = late._run, threading.Event(), threading.Event()

    def held_up(request: object) -> BaseException | None:
        error = run(request)
        if error is not None:
            has_raised.set()
            go_on.wait(60)
        return error

    monkeypatch.setattr(late, "_run", held_up)
    try:
        for _ in range(10):
            has_raised.clear()
            go_on.clear()
            bad, good = ask_widths(rng, True), ask_widths(rng, False)
            check(reference, good, run_slot(other, good))
            ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
            for name, view in late.bind({name: array.shape for name, array in bad.items()}).items():
                np.copyto(view, bad[name])
            late.launch(ended.put)
            assert has_raised.wait(60)
            threading.Timer(0.05, go_on.set).start()
            check(reference, good, run_slot(other, good))
            assert isinstance(ended.get(timeout=60), EngineFailed)
    finally:
        session.close()


def test_what_a_slot_holds_outlives_the_engine_that_made_it(built: Build) -> None:
    """Answers that were not read yet, and rows that wait to be launched, belong to a slot beside the one that fails."""
    model, rng = summed_along(), np.random.default_rng(2)
    done, reference = built(model), Reference(model)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest, streams=2)
    try:
        first, second = session.slots
        asks = [ask_axes(rng, False) for _ in range(3)]
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for name, view in first.bind({name: array.shape for name, array in asks[0].items()}).items():
            np.copyto(view, asks[0][name])
        first.launch(ended.put)
        assert ended.get(timeout=60) is None
        with pytest.raises(EngineFailed):
            run_slot(second, ask_axes(rng, True))
        check(reference, asks[0], first.outputs())
        for name, view in first.bind({name: array.shape for name, array in asks[1].items()}).items():
            np.copyto(view, asks[1][name])
        with pytest.raises(EngineFailed):
            run_slot(second, ask_axes(rng, True))
        first.launch(ended.put)
        assert ended.get(timeout=60) is None
        check(reference, asks[1], first.outputs())
        check(reference, asks[2], run_slot(second, asks[2]))
    finally:
        session.close()


def test_an_engine_that_cannot_be_imported_again_is_tried_again(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = summed_along(), np.random.default_rng(3)
    done, reference = built(model), Reference(model)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest, streams=1)
    try:
        slot, engine = session.slots[0], session._engine
        load = engine._load

        def broken() -> None:
            raise RuntimeError("no memory")

        monkeypatch.setattr(engine, "_load", broken)
        for bad in (True, False):
            with pytest.raises(EngineFailed, match="cannot be imported again: no memory"):
                run_slot(slot, ask_axes(rng, bad))
        monkeypatch.setattr(engine, "_load", load)
        good = ask_axes(rng, False)
        check(reference, good, run_slot(slot, good))
    finally:
        session.close()


def test_of_a_batch_that_raises_only_the_one_at_fault_fails(tmp_path: Path) -> None:
    place(tmp_path, "picky", picky())
    with running(tmp_path, "--delay-scheduler", "4") as server:
        server.wait_ready("picky")
        assert "not batched" not in server.index()["picky", "1"]["reason"]
        for _ in range(3):
            with ThreadPoolExecutor(4) as pool:
                asked = [
                    pool.submit(server.infer, "picky", {"x": ("FP32", [[float(n)] * 4]), "n": ("INT64", [n])})
                    for n in (1, 200, 3, 100)
                ]
            answers = [one.result() for one in asked]
            assert [answer.status_code for answer in answers] == [200, 400, 200, 200], answers[1].text
            assert "cannot run on the values of these inputs" in answers[1].json()["error"]
            for n, answer in zip((1, 3, 100), answers[:1] + answers[2:], strict=True):
                assert answer.json()["outputs"][0]["data"] == [n] * 4


@pytest.mark.parametrize("streams", [1, 2])
def test_good_requests_between_bad_ones_over_tcp(tmp_path: Path, streams: int) -> None:
    place(tmp_path, "sums", sums())
    (tmp_path / "sums" / "config.toml").write_text(f"streams = {streams}\n")
    rng, reference = np.random.default_rng(4), Reference(sums())
    with running(tmp_path) as server:
        server.wait_ready("sums")
        for _ in range(15):
            good, bad = ask_widths(rng, False), ask_widths(rng, True)
            for ask, status in ((good, 200), (bad, 400), (good, 200), (good, 200)):
                answer = server.infer("sums", {name: ("FP32", array) for name, array in ask.items()})
                assert answer.status_code == status, answer.text
                if status == 200:
                    check(reference, ask, {"y": np.array(answer.json()["outputs"][0]["data"], F32)})
