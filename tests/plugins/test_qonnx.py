"""QONNX's binary operator is read, and answers as qonnx's own executor does; its others are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.errors import ModelRefused
from engines.frontend.onnx import read
from engines.reference import Reference
from tests.plugins.fixtures.inputs import images
from tests.support.onnx_models import FLOAT

FIXTURES = Path(__file__).parent / "fixtures"
node = helper.make_node


def of_domain(domain: str, operator: str = "BipolarQuant", opset: int = 17) -> onnx.ModelProto:
    nodes = [node(operator, ["x", "scale"], ["y"], name="quant", domain=domain)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(np.array([0.5], np.float32), "scale")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("opset", [9, 11, 12, 21])
@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"])
def test_a_sign_is_read_in_every_domain_and_opset(tmp_path: Path, domain: str, opset: int) -> None:
    model, _, _ = read(written(tmp_path, of_domain(domain, opset=opset)))
    x = np.array([[-1.0, 0.0, 2.0], [-0.0, -1e-30, 1e-30]], np.float32)
    found = Reference(model)({"x": x})["y"]
    np.testing.assert_array_equal(found, [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5]])


def test_others_are_refused_with_their_nodes(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"only BipolarQuant is read here: qonnx.custom_op.general.Quant \(node 'q"):
        read(written(tmp_path, of_domain("qonnx.custom_op.general", "Quant")))


def test_a_function_that_a_file_brings_is_its_own(tmp_path: Path) -> None:
    """What a file says its operator means counts, whatever its name."""
    model = of_domain("qonnx.custom_op.general")
    text = '<domain: "qonnx.custom_op.general", opset_import: ["" : 17]> BipolarQuant (x, scale) => (y) { y = Neg (x) }'
    model.functions.append(onnx.parser.parse_function(text))
    path = written(tmp_path, model)
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(Reference(read(path)[0])({"x": x})["y"], -x)


@pytest.mark.parametrize("name", ["brevitas_qonnx", "qonnx_cleaned"])
def test_files_answer_as_their_makers_executor_does(name: str) -> None:
    model, _, _ = read(FIXTURES / f"{name}.onnx")
    found = Reference(model)({model.graph.input[0].name: images()})[model.graph.output[0].name]
    expected = np.load(FIXTURES / "qonnx_answers.npz")[name]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
