"""One model file per attack, made here, each refused with a message of its own, in little time and memory."""

from __future__ import annotations

import io
import os
import pickle
import resource
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
from tests.support.onnx_models import FLOAT, build, linear

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
    "huge tensor": (huge, "would have shape"),
    "a size that lies": (lambda: stored([2**40]), "would have 4398046511104 bytes"),
    "a negative size": (lambda: stored([-5]), "has a negative dimension"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_is_refused_with_its_own_message(attack: str, tmp_path: Path) -> None:
    make, said = ATTACKS[attack]
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


def test_counting_agrees_with_what_parsing_makes() -> None:
    """A graph's messages are counted as the schema has them, subgraphs and functions included."""
    assert count_messages(linear().SerializeToString(), 10**6) < 40
    many = build([helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])},
                 {f"w{i}": np.zeros(1, np.float32) for i in range(500)})  # fmt: skip
    assert 500 < count_messages(many.SerializeToString(), 10**6) < 600
    assert count_messages(many.SerializeToString(), 50) == 51
    assert count_messages(b"\xff" * 100, LIMITS.messages) == 0
