"""A binary model is sent as a framework exports it: it serves, and its report lists the layers that run on bits."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from engines.plugins.extension import extension_path
from engines.reference import Reference
from tests.plugins.test_binary_layers import LAYERS, classifier
from tests.support.servers import Server, running
from tests.support.uploads import ended, send

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def test_it_serves_natively_and_answers_as_onnx_runtime_does(server: Server) -> None:
    """The compiler in its sandbox and the server both load the extension; a batch is as good as single rows."""
    model = classifier()
    done = ended(server, send(server, "binary", model.SerializeToString()))
    assert done["state"] == "succeeded", done["error"]
    report = httpx.get(f"{server.url}{done['report']}", timeout=60).json()
    binary = [layer for layer in report["layers"] if layer["op_type"] in LAYERS]
    assert [(layer["source"], layer["precision"]) for layer in binary] == [("conv2", "binary"), ("conv4", "binary")]
    assert all(layer["kernel"].startswith("bnn ") for layer in binary)
    assert report["tools"]["binary kernels"] != "none"
    page = httpx.get(f"{server.url}{done['report']}", headers={"Accept": "text/html"}, timeout=60).text
    assert "BinaryConv2d" in page
    rows = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)
    answer = server.infer("binary", {"x": ("FP32", rows.tolist())}).json()["outputs"][0]
    found = np.array(answer["data"]).reshape(answer["shape"])
    expected = Reference(model)({"x": rows})["y"]
    same = np.isclose(found, expected, rtol=0, atol=1e-4).reshape(len(rows), -1).all(axis=1)
    assert same.mean() > 0.8, "but where a sum of the float stem lies within a rounding of 0"
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
