"""One model file per attack, made here, each refused with a message of its own, in little time and memory."""

from __future__ import annotations

import functools
import io
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ModelRefused
from engines.frontend.guard import LIMITS, Limits, check_file, check_model
from engines.frontend.onnx import read
from engines.frontend.wire import count_messages
from engines.spec import Spec
from engines.targets import openvino as target
from tests.support.onnx_models import FLOAT, build, linear
from tests.support.servers import ROOT

GROWTH_BYTES = 2**29


class Touch:
    """Unpickled, it would make a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("bitserve-was-here",)


def archive(name: str, data: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(name, data)
    return file.getvalue()


def nested(depth: int) -> bytes:
    inner = linear().graph
    for _ in range(depth):
        out = [helper.make_tensor_value_info("y", FLOAT, None)]
        branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=linear().graph)
        inner = helper.make_graph([branch], "g", [], out)
    return helper.make_model(inner).SerializeToString()


def calls(body: list[str], model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """A model with functions f0, f1, ...; fK's nodes call what `body` names, and the graph calls f0."""
    model = model or linear()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for number, called in enumerate(body):
        nodes = [helper.make_node(op, ["a"], ["b"], domain="own" if op[0] == "f" else "") for op in called.split()]
        model.functions.append(helper.make_function("own", f"f{number}", ["a"], ["b"], nodes, opsets))
    model.graph.node.append(helper.make_node("f0", ["x"], ["z"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def elsewhere() -> TensorProto:
    """A tensor whose data are said to lie in another file."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def external(where: str) -> bytes:
    """The same model, with such a tensor in one of the places where a model may keep one."""
    model = calls(["Relu"])
    inner = helper.make_graph([], "g", [], [], [elsewhere()])
    default = model.functions[0].attribute_proto
    if where == "initializer":
        model.graph.initializer.append(elsewhere())
    elif where == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=elsewhere()))
    elif where == "function":
        model.functions[0].node.append(helper.make_node("Constant", [], ["c"], value=elsewhere()))
    elif where == "default":
        default.append(helper.make_attribute("a", elsewhere()))
    elif where == "graph of a default":
        default.append(helper.make_attribute("a", inner))
    else:
        getattr(model.training_info.add(), where).CopyFrom(inner)
    return model.SerializeToString()


def blob() -> bytes:
    """A real one: what an engine of this server is kept as."""
    return target.export(target.compile_model(target.read_model(linear()), 1, 1))


def expanded(columns: int, rows: int | str = "N") -> onnx.ModelProto:
    """y [rows, columns] of x [rows, 1], by an Expand to the rows that come."""
    nodes = [
        helper.make_node("Shape", ["x"], ["r"], start=0, end=1),
        helper.make_node("Concat", ["r", "c"], ["s"], axis=0),
        helper.make_node("Expand", ["x", "s"], ["h"]),
        helper.make_node("ReduceMax", ["h"], ["y"], axes=[1]),
    ]
    return build(nodes, {"x": (FLOAT, [rows, 1])}, {"y": (FLOAT, [rows, 1])}, {"c": np.array([columns])})


def stored(dims: list[int]) -> bytes:
    model = linear()
    model.graph.initializer.append(TensorProto(name="lie", data_type=FLOAT, dims=dims))
    return model.SerializeToString()


def huge() -> bytes:
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [2**18, 2**18])
    node = helper.make_node("ConstantOfShape", ["s"], ["y"])
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", FLOAT, [1])],
                              [helper.make_tensor_value_info("y", FLOAT, [2**18, 2**18])], [shape])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


ELSEWHERE = "tensor 'w' keeps its data in another file"
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pickle": (lambda: pickle.dumps(Touch()), "a Python pickle, which runs code when it is read; it was not read"),
    "old pickle": (lambda: pickle.dumps({"a": [1]}, protocol=0), "a Python pickle"),
    "checkpoint": (lambda: archive("archive/data.pkl", pickle.dumps(Touch())), "a zip archive with a Python pickle"),
    "zip": (lambda: archive("model.onnx", linear().SerializeToString()), "a zip archive: send the ONNX file itself"),
    "TensorRT plan": (lambda: b"ptrt" + bytes(64), "a TensorRT engine, which is native code"),
    "shared library": (lambda: b"\x7fELF" + bytes(64), "a program or a shared library"),
    "Keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "message bomb": (lambda: b"\x3a\x80\x80\x80\x05" + b"\x0a\x00" * 2**20 * 5, "protobuf messages"),
    "deep graphs": (lambda: nested(20), "graphs are nested 21 deep; expected at most 16"),
    "function circle": (lambda: calls(["f1", "f0"]).SerializeToString(), "calls itself"),
    "function bomb": (lambda: calls([f"f{i + 1} f{i + 1}" for i in range(15)] + ["Relu " * 64]).SerializeToString(),
                      "nodes; expected at most 100000"),
    "RTX plan": (lambda: b"vtrt" + bytes(64), "a TensorRT engine, which is native code"),
    "OpenVINO blob": (blob, "a compiled OpenVINO blob"),
    "huge tensor": (huge, "would have shape"),
    "huge batch": (lambda: expanded(2**30).SerializeToString(), "would have shape [32, 1073741824]"),
    "external data": (lambda: external("initializer"), ELSEWHERE),
    "a size that lies": (lambda: stored([2**40]), "would have 4398046511104 bytes"),
    "a negative size": (lambda: stored([-5]), "has a negative dimension"),
}  # fmt: skip


HIDDEN: dict[str, tuple[Callable[[], bytes], str]] = {
    f"external data in {where}": (functools.partial(external, where), ELSEWHERE)
    for where in ("attribute", "function", "default", "graph of a default", "initialization", "algorithm")
}
"""The same attack in other places; these are not sent over HTTP as well."""


@pytest.mark.parametrize("attack", [*ATTACKS, *HIDDEN])
def test_a_hostile_file_is_refused_with_its_own_message(attack: str, tmp_path: Path) -> None:
    make, said = {**ATTACKS, **HIDDEN}[attack]
    path = tmp_path / "model.onnx"
    path.write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelRefused) as refused:
        read(path)
    assert said in str(refused.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH_BYTES
    assert not Path("bitserve-was-here").exists()


def test_what_is_not_a_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ModelRefused, match="is not a regular file"):
        check_file(tmp_path / "model.onnx")


def test_limits_are_those_that_are_asked_for(tmp_path: Path) -> None:
    model = linear()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match="expected at most 100"):
        check_file(path, Limits(file_bytes=100))
    with pytest.raises(ModelRefused, match="expected at most 8"):
        check_model(model, Limits(initializer_bytes=8))
    with pytest.raises(ModelRefused, match="1 nodes; expected at most 0"):
        check_model(model, Limits(nodes=0))


def test_rows_and_sizes_count_as_the_model_will_be_run(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(expanded(2**24).SerializeToString())
    read(path)
    read(path, Spec(max_batch=64))
    with pytest.raises(ModelRefused, match=r"shape \[256, 16777216\], more than 8589934592 bytes with 256 rows"):
        read(path, Spec(max_batch=256))
    node = helper.make_node("MatMul", ["x", "t"], ["y"])
    wide = build([node], {"x": (FLOAT, ["N", "S", 1]), "t": (FLOAT, ["N", 1, "S"])}, {"y": (FLOAT, ["N", "S", "S"])})
    path.write_bytes(wide.SerializeToString())
    read(path)
    with pytest.raises(ModelRefused, match=r"'y' would have shape \[32, 16384, 16384\]"):
        read(path, Spec(shapes={"x": (2**14, 1), "t": (1, 2**14)}))


def test_depth_and_nodes_of_defaults_and_training_count(tmp_path: Path) -> None:
    deep = onnx.ModelProto.FromString(nested(20)).graph
    in_default, in_training = calls(["Relu"]), linear()
    in_default.functions[0].attribute_proto.append(helper.make_attribute("a", deep))
    in_training.training_info.add().algorithm.CopyFrom(deep)
    for model in (in_default, in_training):
        with pytest.raises(ModelRefused, match=r"nested 2\d deep"):
            check_model(model)
    bomb = linear()
    bomb.training_info.add().algorithm.node.extend([onnx.NodeProto()] * 1000)
    assert count_messages(bomb.SerializeToString(), 10**6) > 1000
    with pytest.raises(ModelRefused, match="1001 nodes; expected at most 1000"):
        check_model(bomb, Limits(nodes=1000))


def test_a_parser_that_recurses_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear().SerializeToString())
    code = "import sys; from pathlib import Path; from engines.frontend.onnx import read; read(Path(sys.argv[1]))"
    env = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, path], env=env, cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "ModelRefused: protobuf parses with 'python' here" in done.stderr


def test_counting_agrees_with_what_parsing_makes() -> None:
    """A graph's messages are counted as the schema has them, subgraphs and functions included."""
    assert count_messages(linear().SerializeToString(), 10**6) < 40
    many = build([helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])},
                 {f"w{i}": np.zeros(1, np.float32) for i in range(500)})  # fmt: skip
    assert 500 < count_messages(many.SerializeToString(), 10**6) < 600
    assert count_messages(many.SerializeToString(), 50) == 51
    assert count_messages(b"\xff" * 100, LIMITS.messages) == 0
