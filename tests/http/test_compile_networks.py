"""Networks as people send them, from upload to answers: a CNN, an LSTM, a transformer; the report tells of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from engines.reference import Arrays, Reference
from engines.steps import CANONICAL_PASSES
from tests.passes.networks import encoder, light, recurrent
from tests.support.onnx_models import build
from tests.support.servers import ADMIN, Server, running, until
from tests.support.uploads import arrays, ended, send

pytestmark = pytest.mark.asks_the_compiler

RNG = np.random.default_rng(3)
F32 = np.float32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def pixels(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 3, 224, 224), dtype=F32)


def other_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A second version: every matrix and filter halved."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == F32 and array.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * F32(0.5), tensor.name))
    return changed


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[], Arrays], dict[str, Any]]] = {
    "cnn": (lambda: light("squeezenet"), lambda: {"data_0": pixels(1)}, {}),
    "lstm": (lambda: recurrent("LSTM"), lambda: {"x": RNG.standard_normal((9, 1, 3), dtype=F32)}, {"max_batch": 4}),
    "transformer": (encoder, lambda: ids(1), {"objective": "latency"}),
}


def ids(count: int) -> Arrays:
    (value, *others) = encoder().graph.input
    assert not others
    return {value.name: RNG.integers(0, 50, (count, 12))}


def watch(server: Server, answer: httpx.Response) -> list[dict[str, Any]]:
    url = f"{server.url}{answer.headers['location']}/events"
    with httpx.stream("GET", url, headers=ADMIN, timeout=120) as stream:
        return [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]


def as_json(arrays: Arrays) -> dict[str, Any]:
    kinds = {"float32": "FP32", "int64": "INT64"}
    return {key: (kinds[array.dtype.name], array.tolist()) for key, array in arrays.items()}


def ask(server: Server, name: str, arrays: Arrays) -> np.ndarray:
    answer = server.infer(name, as_json(arrays))
    assert answer.status_code == 200, answer.text[:500]
    output = answer.json()["outputs"][0]
    return np.array(output["data"], F32).reshape(output["shape"])


def same(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", CASES)
def test_from_upload_to_answers(server: Server, name: str) -> None:
    make, draw, spec = CASES[name]
    model, inputs = make(), draw()
    answer = send(server, name, model.SerializeToString(), spec)
    assert answer.status_code == 202, answer.text
    events = watch(server, answer)
    assert (events[-1]["state"], events[-1]["percent"]) == ("succeeded", 100), events[-1]
    stages = [
        "queued", "guard", "read", "rewrite", *CANONICAL_PASSES, "compare", "image inputs", "widen halves", "prove",
        "measure", "compile", "check", "publish", "load", "done",
    ]  # fmt: skip
    assert list(dict.fromkeys(event["stage"] for event in events)) == stages
    want = next(iter(Reference(model)(inputs).values()))
    same(ask(server, name, inputs), want)

    second = other_weights(model)
    other = next(iter(Reference(second)(inputs).values()))
    assert not np.allclose(other, want, rtol=1e-2), "the versions answer differently"
    done = ended(server, send(server, name, second.SerializeToString(), spec))
    assert (done["state"], done["version"]) == ("succeeded", 2), done["error"]
    same(ask(server, name, inputs), other)

    report = httpx.get(f"{server.url}{done['report']}").json()
    assert report["chosen"] == "fp32"
    assert [candidate["passed"] for candidate in report["candidates"]] == [True]
    assert {"openvino", "onnxruntime", "onnx"} <= set(report["tools"])
    assert {"model.onnx", "engine.blob"} <= set(report["hashes"])
    assert report["accuracy"]["synthetic"] is True
    assert all(layer["precision"] and layer["op_type"] for layer in report["layers"])
    assert [one["name"] for one in report["passes"]] == list(CANONICAL_PASSES)
    page = httpx.get(f"{server.url}{done['report']}", headers={"accept": "text/html"}, timeout=60)
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert "<svg" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    unloaded_and_back(server, name, inputs, other)


def test_pixels_go_over_the_wire_as_bytes(server: Server) -> None:
    """UINT8 NHWC in the body's own bytes: a quarter of the floats; mean, scale and layout are the engine's."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        onnx.helper.make_node("GlobalMaxPool", ["h"], ["p"], name="pool"),
        onnx.helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    weights = RNG.standard_normal((4, 3, 3, 3), dtype=F32)
    floats = onnx.TensorProto.FLOAT
    model = build(nodes, {"x": (floats, ["N", 3, 8, 6])}, {"y": (floats, ["N", 4])}, {"w": weights})
    mean, scale = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    spec = {"inputs": {"x": {"layout": "NHWC", "mean": mean, "scale": scale}}}
    done = ended(server, send(server, "pixels", model.SerializeToString(), spec))
    assert done["state"] == "succeeded", done["error"]
    (told,) = httpx.get(f"{server.url}/v2/models/pixels").json()["inputs"]
    assert (told["datatype"], told["shape"]) == ("UINT8", [-1, 8, 6, 3])
    pictures = RNG.integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    head = json.dumps({"inputs": [{
        "name": "x", "datatype": "UINT8", "shape": [5, 8, 6, 3], "parameters": {"binary_data_size": pictures.nbytes},
    }]}).encode()  # fmt: skip
    answer = httpx.post(
        f"{server.url}/v2/models/pixels/infer", content=head + pictures.tobytes(), timeout=60,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    given = np.moveaxis((pictures.astype(F32) - F32(mean)) / F32(scale), -1, 1)
    (output,) = answer.json()["outputs"]
    same(np.array(output["data"], F32).reshape(output["shape"]), Reference(model)({"x": given})["y"])
    floated = server.infer("pixels", {"x": ("FP32", given[:1].tolist())})
    assert (floated.status_code, "UINT8" in floated.json()["error"]) == (400, True)


def unloaded_and_back(server: Server, name: str, inputs: Arrays, want: np.ndarray) -> None:
    """What was compiled before is not compiled again."""
    control, compiled = f"{server.url}/v2/repository/models/{name}", compiles(server)
    assert httpx.post(f"{control}/unload", headers=ADMIN, timeout=60).status_code == 200
    until(lambda: server.state(name, 2) == "UNAVAILABLE", "it is unloaded")
    refused = server.infer(name, as_json(inputs))
    assert (refused.status_code, "unloaded" in refused.json()["error"]) == (404, True), refused.text
    assert httpx.post(f"{control}/load", headers=ADMIN, timeout=120).status_code == 200
    same(ask(server, name, inputs), want)
    assert compiles(server) == compiled


def compiles(server: Server) -> list[str]:
    return [line for line in server.log if "compiling" in line]


def test_calibration_samples_are_what_the_engine_is_held_against(server: Server) -> None:
    model = recurrent("GRU")
    samples = arrays(x=RNG.standard_normal((6, 7, 2, 3), dtype=F32))
    done = ended(server, send(server, "gru", model.SerializeToString(), calibration=samples))
    assert done["state"] == "succeeded", done["error"]
    accuracy = httpx.get(f"{server.url}{done['report']}").json()["accuracy"]
    assert (accuracy["synthetic"], accuracy["samples"], accuracy["over_bound"]) == (False, 6, 0)


def test_a_budget_is_kept_or_the_build_fails(server: Server) -> None:
    """Labels that the model does not give cannot make it lose anything; those of a wrong kind are refused by name."""
    from tests.support.onnx_models import linear

    model, x = linear(), RNG.standard_normal((20, 16), dtype=F32)
    labels = Reference(model)({"x": x})["y"].argmax(axis=1)
    spec = {"metric": "top1", "accuracy_budget": 0.0}
    done = ended(server, send(server, "kept", model.SerializeToString(), spec, validation=arrays(x=x, labels=labels)))
    assert done["state"] == "succeeded", done["error"]
    report = httpx.get(f"{server.url}{done['report']}").json()
    assert (report["candidates"][0]["metric"], report["candidates"][0]["value"]) == ("top1", 1.0)
    wrong = arrays(x=x, labels=labels + 100)
    done = ended(server, send(server, "kept", model.SerializeToString(), spec, validation=wrong))
    assert done["state"] == "failed"
    assert "label" in done["error"]
    refused = send(server, "kept", model.SerializeToString(), spec)
    assert (refused.status_code, "accuracy_budget needs samples to judge by" in refused.text) == (400, True)
