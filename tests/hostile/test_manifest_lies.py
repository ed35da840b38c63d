"""Manifests that whoever took over a compiler could write: refused, or harmless to load and to ask."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.config import ModelConfig, model_options
from app.http.schemas import model_config, model_metadata
from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.errors import ServingError
from app.serving.fitting import Call, InputTensor
from app.serving.gateway import Gateway
from app.serving.registry import Registry
from app.warmup import warm_up
from engines.errors import EngineError, PlanInvalid
from engines.manifest import Manifest, PlanFile, StreamTiming, encode
from engines.manifest_check import check_manifest
from engines.repository import MANIFEST_FILE, PlanCache, file_sha256, plan_key
from engines.runtime.openvino import load_session
from engines.tensor import BY_NAME
from tests.support.fakes import HeldLoop, Sink
from tests.support.onnx_models import linear, place
from tests.support.plans import compile_into
from tests.support.servers import running

CORES = os.cpu_count() or 1
X: dict[str, Any] = {"x": ("FP32", [[1.0] * 16])}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A plan, and its manifest, which is true."""
    base = tmp_path_factory.mktemp("compiled")
    cache = PlanCache(base / ".cache")
    manifest = compile_into(cache, place(base, "m", linear()))
    return cache.entry(manifest.key), manifest


def tensor(manifest: Manifest, kind: str, **changes: Any) -> dict[str, Any]:
    """Changes of the first input or output."""
    first = getattr(manifest, kind)[0]
    return {kind: (msgspec.structs.replace(first, **changes),)}


def plan(**changes: Any) -> dict[str, Any]:
    """A manifest with one plan, of which this is wrong."""
    of: dict[str, Any] = {
        "target": "tensorrt-rtx", "file": "tensorrt-rtx.plan", "sha256": "", "size_bytes": 1, "precision": "fp32",
        "version": "1", "sms": (86,), "profiles": (),
    }  # fmt: skip
    return {"plans": (PlanFile(**{**of, **changes}),)}


def lies(manifest: Manifest) -> dict[str, dict[str, Any]]:
    replace = functools.partial(msgspec.structs.replace, manifest.proof)
    of_input, of_output = functools.partial(tensor, manifest, "inputs"), functools.partial(tensor, manifest, "outputs")
    return {
        "streams": {"streams": 10**6}, "no streams": {"streams": 0}, "threads": {"threads": 10**6, "streams": 10**6},
        "negative threads": {"threads": -5}, "max_batch": {"max_batch": -4}, "a large max_batch": {"max_batch": 2**40},
        "no inputs": {"inputs": ()}, "no outputs": {"outputs": ()}, "a datatype": of_input(datatype="FP999"),
        "strings": of_input(datatype="BYTES"), "an output's datatype": of_output(datatype="x"),
        "an axis": of_input(batch_axis=7), "a negative axis": of_input(batch_axis=-1),
        "an output's axis": of_output(batch_axis=2), "a size": of_input(shape=(-2, 16)),
        "a vast size": of_output(shape=(-1, 2**62)), "another rank": of_input(shape=(-1,)),
        "no name": of_input(name=""),
        "a name twice": {"outputs": manifest.outputs * 2}, "bits": of_input(integer_bits=-1),
        "many bits": of_input(integer_bits=10**6), "a range": of_input(value_range=(5, 1)),
        "a vast range": of_input(value_range=(0, 2**65)), "a largest": of_input(largest=-1.0),
        "no sample": {"sample_shapes": {}}, "a vast sample": {"sample_shapes": {"x": (2**34, 16)}},
        "another sample": {"sample_shapes": {"x": (1, 17)}}, "a negative sample": {"sample_shapes": {"x": (-3, 16)}},
        "guards": {"guards": ("g",) * 10**5}, "a guard": {"guards": ("g" * 10**5,)}, "notes": {"notes": ("n",) * 10**4},
        "a note": {"notes": ("n" * 10**6,)}, "a reason": {"proof": replace(reason="r" * 10**6)},
        "rows": {"proof": replace(rows=0)}, "a time": {"build_s": -1.0},
        "a timing": {"stream_timings": (StreamTiming(1, 1, -1, 1.0),)},
        "a plan's guards": plan(guards=("g",) * 10**5), "a plan's guard": plan(guards=("g" * 10**5,)),
        "a plan's profile": plan(profiles=({"x": ((-1, 16), (1, 16), (1, 16))},)), "a plan's GPU": plan(sms=(-1,)),
        "a plan's sets": plan(profile_sets=2, profiles=({},) * 3), "no sets": plan(profile_sets=0),
        "a plan's file": plan(file="../plan"),
        "a file": {"engine": msgspec.structs.replace(manifest.engine, file="../engine.blob")},
    }  # fmt: skip


def test_the_truth_is_believed(compiled: tuple[Path, Manifest]) -> None:
    check_manifest(compiled[1], CORES)
    check_manifest(msgspec.structs.replace(compiled[1], **plan()), CORES)


def test_each_lie_is_refused_with_its_reason(compiled: tuple[Path, Manifest]) -> None:
    folder, manifest = compiled
    cache = PlanCache(folder.parent)
    true = (folder / MANIFEST_FILE).read_bytes()
    try:
        for name, changes in lies(manifest).items():
            (folder / MANIFEST_FILE).write_bytes(encode(msgspec.structs.replace(manifest, **changes)))
            with pytest.raises(PlanInvalid, match="the manifest says what cannot be: ") as refused:
                cache.manifest(manifest.key)
            assert len(str(refused.value)) < 500, name
    finally:
        (folder / MANIFEST_FILE).write_bytes(true)


def test_more_threads_than_the_server_allows_are_not_believed(compiled: tuple[Path, Manifest]) -> None:
    many = msgspec.structs.replace(compiled[1], threads=CORES + 6)
    check_manifest(many, CORES + 6)
    with pytest.raises(PlanInvalid, match="threads; expected 1 to"):
        check_manifest(many, CORES)


def test_a_server_compiles_anew_what_lies(tmp_path: Path) -> None:
    chosen = ("streams", "max_batch", "no outputs", "a datatype", "an axis")
    cache = PlanCache(tmp_path / ".cache")
    for number, name in enumerate(chosen):
        source = place(tmp_path, f"m{number}", linear(scale=number + 1))
        manifest = compile_into(cache, source)
        assert manifest.key == plan_key(file_sha256(source))
        lie = msgspec.structs.replace(manifest, **lies(manifest)[name])
        (cache.entry(manifest.key) / MANIFEST_FILE).write_bytes(encode(lie))
    with running(tmp_path) as server:
        server.wait_ready()
        for number in range(len(chosen)):
            assert server.infer(f"m{number}", X).status_code == 200
        said = [event for event in server.log_events() if "a cached plan was not trusted" in event["message"]]
        assert len(said) == len(chosen)


SIZES = st.sampled_from([-2, -1, 0, 1, 2, 4, 7, 16, 17, 2**20])
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
TENSOR = st.fixed_dictionaries({}, optional={
    "name": st.sampled_from(["x", "y", "z", ""]), "datatype": st.sampled_from([*BY_NAME, "FP999"]), "shape": SHAPES,
    "batch_axis": st.sampled_from([None, -1, 0, 1, 7]), "integer_bits": st.integers(-1, 70),
    "value_range": st.none() | st.tuples(st.integers(), st.integers()),
    "largest": st.floats(allow_nan=False, allow_infinity=False),
})  # fmt: skip
PROOF = st.fixed_dictionaries({}, optional={"batchable": st.booleans(), "rows": st.integers(-1, 70_000)})
CHANGES = st.fixed_dictionaries({}, optional={
    "streams": st.integers(-1, CORES + 1), "threads": st.integers(-1, CORES + 1), "max_batch": st.integers(-2, 70_000),
    "sample_shapes": st.dictionaries(st.sampled_from(["x", "z"]), SHAPES, max_size=2), "inputs": TENSOR,
    "outputs": TENSOR, "guards": st.lists(st.text(max_size=3), max_size=3).map(tuple), "proof": PROOF,
    "fails_on_values": st.booleans(), "notes": st.lists(st.text(), max_size=2).map(tuple),
})  # fmt: skip


def lied(manifest: Manifest, changes: Mapping[str, Any]) -> Manifest:
    """The manifest with changes, those of its first input, its first output and its proof among them."""
    plain = dict(changes)
    for kind in ("inputs", "outputs"):
        if kind in plain:
            plain.update(tensor(manifest, kind, **plain[kind]))
    if "proof" in plain:
        plain["proof"] = msgspec.structs.replace(manifest.proof, **plain["proof"])
    return msgspec.structs.replace(manifest, **plain)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=CHANGES)
def test_what_is_believed_can_be_loaded_shown_and_asked(compiled: tuple[Path, Manifest], changes: Any) -> None:
    """It may turn out not to fit its engine, and is then no plan; what serves is never the server's fault."""
    folder, true = compiled
    manifest = lied(true, changes)
    try:
        check_manifest(manifest, CORES)
        session = load_session(folder, manifest)
    except PlanInvalid:
        return
    try:
        warm_up(session, manifest, (1, 2) if manifest.proof.batchable else (1,))
    except (EngineError, RuntimeError):  # OpenVINO's own, of a shape that its engine does not take
        return
    finally:
        session.close()
    ask(load_session(folder, manifest), manifest, folder)


def ask(session: Any, manifest: Manifest, folder: Path) -> None:
    """As over HTTP: metadata, configuration, and a call with one row."""
    options = model_options(
        ModelConfig(), folder, batchable=manifest.proof.batchable, max_batch_rows=manifest.max_batch or 32,
        max_queue_rows=1024, outputs=[spec.name for spec in manifest.outputs],
    )  # fmt: skip
    loop = HeldLoop()
    gateway = Gateway(Registry(), Device(loop, CORES, lambda: loop.now_ns))
    endpoint = Endpoint("m", 1, manifest.inputs, manifest.outputs, session, options, gateway.device)
    endpoint.fails_on_values = manifest.fails_on_values
    try:
        assert json.loads(model_metadata(endpoint, []).model_dump_json())["outputs"]
        assert json.loads(json.dumps(model_config(endpoint)))["input"]
        inputs = {
            spec.name: InputTensor(
                spec.datatype, np.ones(manifest.sample_shapes[spec.name], BY_NAME[spec.datatype].numpy)
            )
            for spec in manifest.inputs
        }
        sink = Sink()
        try:
            gateway.submit(endpoint, Call(inputs), sink, loop.now_ns)
        except ServingError:  # the values may be beyond what the manifest allows
            return
        while not sink.replies:
            loop.run()
        (reply,) = sink.replies
        assert isinstance(reply, dict), reply
    finally:
        session.close()
