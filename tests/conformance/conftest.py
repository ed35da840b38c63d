"""`--server URL` runs this folder against any v2 server, `--model NAME` with any of its models; else one is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from onnx import TensorProto, helper
from tritonclient import http
from tritonclient.utils import InferenceServerException

from tests.support import onnx_models
from tests.support.servers import running


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--server", dest="v2_server", metavar="URL", help="v2 server to test, instead of one started here")
    group.addoption("--model", dest="v2_model", metavar="NAME", help="its model to test with (default: add_sub)")


@dataclass(frozen=True)
class Target:
    """The server under test. `ours`: started here, with all models that the tests know."""

    address: str
    ours: bool
    chosen: str

    def client(self, **options: Any) -> http.InferenceServerClient:
        return http.InferenceServerClient(self.address, **options)

    def need(self, model: str) -> str:
        """Skip the test where the server lacks a model; the model's name otherwise."""
        with self.client() as client:
            if not client.is_model_ready(model):
                assert not self.ours, f"{model} is not ready"
                pytest.skip(f"the server at {self.address} has no model {model!r} that is ready")
        return model


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    url = request.config.getoption("v2_server", None)
    model = request.config.getoption("v2_model", None) or "add_sub"
    if url:
        yield Target(url.removeprefix("http://").rstrip("/"), False, model)
        return
    repository = tmp_path_factory.mktemp("conformance")
    onnx_models.place(repository, "add_sub", onnx_models.add_sub())
    onnx_models.place(repository, "linear", onnx_models.linear(), config="[labels]\ny = 'labels.txt'\n")
    (repository / "linear" / "labels.txt").write_text("zero\none\ntwo\nthree\n")
    onnx_models.place(repository, "lstm", onnx_models.time_major_lstm(batch_first=True))
    onnx_models.place(repository, "versions", onnx_models.linear(scale=1.0), 1, config='versions = "all"\n')
    onnx_models.place(repository, "versions", onnx_models.linear(scale=2.0), 2)
    onnx_models.place(repository, "half", _unary("Neg", TensorProto.FLOAT16))
    onnx_models.place(repository, "bools", _unary("Not", TensorProto.BOOL))
    with running(repository, "--cache", str(tmp_path_factory.getbasetemp() / "plans")) as server:
        server.wait_ready()
        yield Target(f"127.0.0.1:{server.port}", True, model)


def _unary(operator: str, kind: int) -> Any:
    node = helper.make_node(operator, ["x"], ["y"], name="unary")
    return onnx_models.build([node], {"x": (kind, ["N", 4])}, {"y": (kind, ["N", 4])})


@pytest.fixture
def client(target: Target) -> Iterator[http.InferenceServerClient]:
    with target.client(concurrency=8) as client:
        yield client


@pytest.fixture
def model(target: Target) -> str:
    """The chosen model; the tests that use it know nothing of it."""
    return target.need(target.chosen)


@pytest.fixture
def add_sub(target: Target, client: http.InferenceServerClient) -> str:
    """A model like Triton's `simple`: the chosen one, if it is such a model, else `add_sub`."""
    try:
        inputs = client.get_model_metadata(target.chosen)["inputs"]
    except InferenceServerException:
        inputs = []
    if sorted(tensor["name"] for tensor in inputs) == ["INPUT0", "INPUT1"]:
        return target.chosen
    return target.need("add_sub")
