"""Files of four exporters of binary networks, by the command and sent to a server: reports list their layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from engines.plugins.extension import extension_path
from engines.reference import Reference
from tests.http.test_cli_compile import document, run
from tests.plugins.fixtures.inputs import images
from tests.plugins.test_exported import FIXTURES, LAYERS
from tests.support.servers import Server, running
from tests.support.uploads import ended, send

pytestmark = [
    pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed"),
    pytest.mark.asks_the_compiler,
]
FILES = ("larq_tf2onnx", "torch_where_bn_dynamo", "torch_ste_scaled_script", "brevitas_plain")
MULTIPLY = ("BinaryConv2d", "BinaryThreshold2d", "BinaryGemm", "BinaryThreshold")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def check(report: dict[str, Any], name: str) -> None:
    layers = [layer for layer in report["layers"] if layer["op_type"] in MULTIPLY]
    assert len(layers) >= len(LAYERS[name])
    assert all(layer["precision"] == "binary" and layer["kernel"].startswith("bnn ") for layer in layers)
    assert all(layer["weight_bytes_saved"] > 0 for layer in layers)


@pytest.mark.parametrize("name", FILES)
def test_an_upload_is_served_and_answers_as_onnx_runtime_does(server: Server, name: str) -> None:
    stored = (FIXTURES / f"{name}.onnx").read_bytes()
    done = ended(server, send(server, name, stored))
    assert done["state"] == "succeeded", done["error"]
    check(httpx.get(f"{server.url}{done['report']}", timeout=60).json(), name)
    model = onnx.load_from_string(stored)
    rows = images(200, channels_last=name.startswith("larq"))
    given = model.graph.input[0].name
    answers = [
        server.infer(name, {given: ("FP32", rows[at : at + 20].tolist())}).json()["outputs"][0]["data"]
        for at in range(0, len(rows), 20)
    ]
    (expected,) = Reference(model)({given: rows}).values()
    found = np.reshape(answers, expected.shape)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.asks_no_engine
@pytest.mark.parametrize("name", ["larq_tf2onnx", "torch_where_bn_script"])
def test_the_command_compiles_them(name: str, tmp_path: Path) -> None:
    check(document(run(FIXTURES / f"{name}.onnx", "--name", name, "--repository", tmp_path, "--json")), name)
