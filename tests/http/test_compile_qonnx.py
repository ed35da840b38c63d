"""A model with QONNX's operators is sent as Brevitas exports it: it serves, and answers as qonnx's executor did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from engines.plugins.extension import extension_path
from tests.plugins.fixtures.inputs import images
from tests.support.servers import Server, running
from tests.support.uploads import ended, send

pytestmark = [
    pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed"),
    pytest.mark.asks_the_compiler,
]
FIXTURES = Path(__file__).parents[1] / "plugins" / "fixtures"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def test_it_serves_and_answers_as_its_makers_executor_does(server: Server) -> None:
    done = ended(server, send(server, "brevitas", (FIXTURES / "brevitas_qonnx.onnx").read_bytes()))
    assert done["state"] == "succeeded", done["error"]
    report = httpx.get(f"{server.url}{done['report']}").json()
    binary = [layer["source"] for layer in report["layers"] if layer["precision"] == "binary"]
    assert {"/2/Conv", "/6/Conv", "/10/MatMul"} <= set(binary)
    rows, expected = images()[:32], np.load(FIXTURES / "qonnx_answers.npz")["brevitas_qonnx"][:32]
    answer = server.infer("brevitas", {"x": ("FP32", rows.tolist())}).json()["outputs"][0]
    found = np.array(answer["data"]).reshape(answer["shape"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
