"""A binary model is sent as a framework exports it: it serves, and its report lists the layers that run on bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from engines.passes.binary_layers import with_binary_layers
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.reference import Reference
from tests.plugins.test_binary_layers import LAYERS, classifier
from tests.support.servers import Server, running
from tests.support.uploads import ended, send

pytestmark = [
    pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed"),
    pytest.mark.asks_the_compiler,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


@pytest.fixture(scope="module")
def compiled(server: Server) -> dict[str, Any]:
    """The build of `classifier`, which serves as "binary"."""
    done = ended(server, send(server, "binary", classifier().SerializeToString()))
    assert done["state"] == "succeeded", done["error"]
    return done


def answers(server: Server, name: str, rows: np.ndarray) -> list[float]:
    found: list[float] = server.infer(name, {"x": ("FP32", rows.tolist())}).json()["outputs"][0]["data"]
    return found


def test_it_serves_natively_and_answers_as_onnx_runtime_does(server: Server, compiled: dict[str, Any]) -> None:
    """The compiler in its sandbox and the server both load the extension; a batch is as good as single rows."""
    report = httpx.get(f"{server.url}{compiled['report']}", timeout=60).json()
    binary = [layer for layer in report["layers"] if layer["op_type"] in LAYERS]
    assert [(layer["source"], layer["precision"]) for layer in binary] == [("conv2", "binary"), ("conv4", "binary")]
    assert all(layer["kernel"].startswith("bnn ") for layer in binary)
    assert report["tools"]["binary kernels"] != "none"
    page = httpx.get(f"{server.url}{compiled['report']}", headers={"Accept": "text/html"}, timeout=60).text
    assert "BinaryConv2d" in page
    saved = [4 * 96 * 9 * 64 - 4 * 96 * 9 * 2, 4 * 128 * 9 * 96 - 4 * 128 * 9 * 3]
    assert [layer["weight_bytes_saved"] for layer in binary] == saved
    assert "Weights of one bit take" in page
    rows = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)
    expected = Reference(classifier())({"x": rows})["y"]
    found = np.reshape(answers(server, "binary", rows), expected.shape)
    same = np.isclose(found, expected, rtol=0, atol=1e-4).reshape(len(rows), -1).all(axis=1)
    assert same.mean() > 0.8, "but where a sum of the float stem lies within a rounding of 0"
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


@pytest.mark.usefixtures("compiled")
def test_a_file_that_holds_bits_is_served_as_the_one_it_was_made_of(server: Server) -> None:
    """The operators and their functions are in the file, which any ONNX Runtime runs: weights take 1 bit in it."""
    model = classifier()
    packed = with_bodies(with_binary_layers(model)[0])
    stored = packed.SerializeToString()
    assert len(stored) < len(model.SerializeToString()) / 10
    done = ended(server, send(server, "packed", stored))
    assert done["state"] == "succeeded", done["error"]
    report = httpx.get(f"{server.url}{done['report']}", timeout=60).json()
    assert [layer["op_type"] for layer in report["layers"] if layer["op_type"] in LAYERS] == list(LAYERS)
    assert {"name": "binary floats", "note": "2 layers were stored in bits"}.items() <= report["passes"][0].items()
    rows = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    one, other = answers(server, "binary", rows), answers(server, "packed", rows)
    expected = Reference(packed)({"x": rows})["y"]
    same = np.isclose(np.reshape(other, expected.shape), expected, rtol=0, atol=1e-4).reshape(16, -1).all(axis=1)
    assert same.mean() > 0.8, "but where a sum of the float stem lies within a rounding of 0"
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_operators_without_their_functions_are_known(server: Server) -> None:
    """Who writes a file with the schema at hand need not write out what the operators mean."""
    bare = with_binary_layers(classifier())[0]
    assert not bare.functions
    done = ended(server, send(server, "bare", bare.SerializeToString()))
    assert done["state"] == "succeeded", done["error"]
    rows = np.random.default_rng(3).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(answers(server, "binary", rows), answers(server, "bare", rows), rtol=0, atol=1e-4)


@pytest.mark.asks_no_engine
def test_operators_that_do_not_exist_or_are_not_whole_are_refused(server: Server) -> None:
    for change, said in (("BinaryNothing", "BinaryNothing"), ("BinaryGemm", "")):
        wrong = with_binary_layers(classifier())[0]
        next(node for node in wrong.graph.node if node.op_type == "BinaryConv2d").op_type = change
        done = ended(server, send(server, "wrong", wrong.SerializeToString()))
        assert done["state"] == "failed"
        assert said in done["error"]
        assert "Traceback" not in done["error"]
        assert server.alive()
