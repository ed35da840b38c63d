"""The small parts: names, keys, quotas, samples, bounds, tables. Needs nothing but the interpreter."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines import repository
from engines.batchproof import Blind, Proven, Refuted, axis_candidates, differs, prove
from engines.errors import BadRepository, ModelRefused
from engines.hardware import cpu_fingerprint, usable_threads
from engines.passes.calm_softmax import saturating_inputs, with_scaled_values
from engines.passes.dynamic_batch import BATCH, with_batch_axes
from engines.passes.random_weights import with_moved_weights, with_random_weights
from engines.reference import Arrays
from engines.repository import check_model_name, is_model_name, plan_key
from engines.samples import SCALES, Sampler, find_sampler, integer_limits
from engines.tensor import BY_NAME, DYNAMIC, TensorSpec, datatype
from engines.verify import rounding_bound
from tests.engines import zoo
from tests.support.onnx_models import FLOAT, build, linear, time_major_lstm

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "0", "resnet50", "a" * 128, "x.onnx"])
def test_allowed_names(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "cannot be empty"), ("  ", "cannot be empty"), ("..", "path traversal"), ("a/b", "path traversal"),
        ("a\\b", "path traversal"), ("../x", "path traversal"), (".hidden", "not allowed"), ("a..b", "not allowed"),
        ("-a", "not allowed"), ("_a", "not allowed"), ("a" * 129, "1 to 128"), ("é", "not allowed"),
        ("a b", "not allowed"),        ("a\n", "not allowed"), ("stats", "not allowed"), ("a\x00", "not allowed"),
    ],
)  # fmt: skip
def test_names_that_are_not_allowed(name: str, said: str) -> None:
    with pytest.raises(BadRepository, match=said):
        check_model_name(name)


@given(st.text(max_size=12))
def test_a_name_is_allowed_or_refused_never_else(name: str) -> None:
    try:
        check_model_name(name)
    except BadRepository:
        assert not is_model_name(name)
    else:
        assert is_model_name(name)
        assert (Path("/r") / name).resolve().parent == Path("/r")


def test_a_plan_key_is_of_source_target_passes_tools_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {plan_key("a" * 64), plan_key("b" * 64), plan_key("a" * 64, "other"), plan_key("a" * 64, threads=97)}
    monkeypatch.setattr(repository, "cpu_fingerprint", lambda threads: "other")
    keys.add(plan_key("a" * 64))
    monkeypatch.setattr(repository, "tool_versions", lambda: {"openvino": "1"})
    keys.add(plan_key("a" * 64))
    monkeypatch.setattr(repository, "PLAN_FORMAT", "other")
    keys.add(plan_key("a" * 64))
    monkeypatch.setattr(repository, "CANONICAL_PASSES", repository.CANONICAL_PASSES[:-1])
    keys.add(plan_key("a" * 64))
    assert len(keys) == 8
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, CORES), ({"cpu.max": "max 100000\n"}, CORES), ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, min(CORES, 2)), ({"cpu.max": "6400000 100000"}, CORES),
        ({"cpu.max": "1000 100000"}, 1), ({"cpu.max": "garbage"}, CORES), ({"cpu.max": "1 0"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, min(CORES, 2)),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, CORES),
    ],
)  # fmt: skip
def test_threads_follow_the_cgroup(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_threads(tmp_path, tmp_path / "none") == cores


QUOTA = {"v2": ("", "cpu.max", "{} 100000\n"), "v1": ("cpu", "cpu.cfs_quota_us", "{}\n"),
         "v1 with others": ("cpu,cpuacct", "cpu.cfs_quota_us", "{}\n")}  # fmt: skip


@pytest.mark.parametrize("kind", QUOTA)
@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({"a/b": 100000}, 1), ({"a": 100000}, 1), ({"a": 100000, "a/b": 6400000}, 1), ({"": 100000}, 1),
        ({"a": 150000, "a/b": 6400000}, min(CORES, 2)), ({"a": -1, "a/b": 6400000}, CORES), ({"c": 100000}, CORES),
    ],
)  # fmt: skip
def test_every_group_above_bounds_the_threads(kind: str, quotas: dict[str, int], cores: int, tmp_path: Path) -> None:
    tree, name, text = QUOTA[kind]
    for group, quota in quotas.items():
        folder = tmp_path / tree / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format("max" if quota < 0 and kind == "v2" else quota))
        (folder / "cpu.cfs_period_us").write_text("100000\n")
    own = tmp_path / "own"
    own.write_text(f"4:memory:/x\n1:{tree}:/a/b\n" if tree else "0::/a/b\n")
    assert usable_threads(tmp_path, own) == cores


@pytest.mark.parametrize("own", ["0::/../b\n", "0::/docker/1\n", "1:cpu:/docker/1\n", "", "x\n", "0::\n"])
def test_a_group_that_is_not_mounted_is_passed_over(own: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "own").write_text(own)
    assert usable_threads(tmp_path, tmp_path / "own") == 1


def test_the_fingerprint_names_instruction_sets_and_threads() -> None:
    assert cpu_fingerprint() == cpu_fingerprint()
    assert cpu_fingerprint().endswith(f"-{usable_threads()}t")


SPECS = [TensorSpec("x", "FP32", (DYNAMIC, 3, DYNAMIC)), TensorSpec("n", "INT64", (DYNAMIC,))]


def test_the_sampler_draws_rows_that_differ() -> None:
    sampler = Sampler(SPECS, {"x": 0, "n": 0}, size=5, int_limit=4)
    rows = [sampler.draw(seed, scale) for seed, scale in enumerate(SCALES)]
    assert all(row["x"].shape == (1, 3, 5) and row["n"].shape == (1,) for row in rows)
    assert all(row["x"].dtype == np.float32 and 0 <= row["n"][0] < 4 for row in rows)
    assert len({row["x"].tobytes() for row in rows}) == len(rows)
    assert rows[0]["x"].tobytes() == sampler.draw(0)["x"].tobytes()
    assert sampler.bytes_per_row() == 3 * 5 * 4 + 8


@pytest.mark.parametrize("kind", [name for name in BY_NAME if name != "BYTES"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 1)])
def test_samples_have_the_type_and_rank_of_the_input(kind: str, shape: tuple[int, ...]) -> None:
    drawn = Sampler([TensorSpec("x", kind, shape)], {}, 1, 256).draw(0)["x"]
    assert isinstance(drawn, np.ndarray)
    assert (drawn.dtype, drawn.shape) == (datatype(kind).numpy, shape)


def test_the_first_sizes_that_the_reference_takes_are_used() -> None:
    def reference(row: Arrays) -> Arrays:
        assert row["x"].shape[2] % 7 == 0
        assert row["n"].max() < 32
        return {}

    sampler = find_sampler(SPECS, {"x": 0, "n": 0}, reference, integer_limits(False))
    assert (sampler.size, sampler.int_limit) == (7, 32)

    def refuse(row: Arrays) -> Arrays:
        raise ValueError("never\nat all")

    with pytest.raises(ModelRefused, match=r"the last attempt said: never$"):
        find_sampler(SPECS, {}, refuse, integer_limits(False))


def test_axes_worth_trying() -> None:
    assert axis_candidates([TensorSpec("x", "FP32", (DYNAMIC, 8))]) == [{"x": 0}]
    assert axis_candidates([TensorSpec("x", "FP32", (4, 8))]) == []
    assert axis_candidates([TensorSpec("x", "FP32", (4, 1))]) == [], "rows are counted in the first dimension"
    both = axis_candidates([TensorSpec("x", "FP32", (1, 8)), TensorSpec("h", "FP32", (2, 1, 8))])
    assert both == [{"x": 0, "h": 1}]
    assert axis_candidates([TensorSpec("x", "FP32", (DYNAMIC,) * 3)])[0] == {"x": 0}


def test_answers_are_compared_by_value_place_and_shape() -> None:
    one = np.array([1.0, np.nan, np.inf], np.float32)
    assert not differs(one, one.copy(), 0).differs
    assert differs(one, np.array([1.0, 0, np.inf], np.float32), 1e-3).differs
    assert differs(one, np.array([1.0, np.nan, -np.inf], np.float32), 1e-3).differs
    assert differs(one, np.array([np.nan, np.nan, np.inf], np.float32), 1e-3).differs
    assert differs(one, one[:2], 1).differs
    assert differs(np.array([1, 2]), np.array([1, 3]), 1.0).differs, "whole numbers must be equal"
    assert not differs(np.array([100.0, 1.0]), np.array([100.0, 1.05]), 1e-3).differs
    assert differs(np.array([100.0, 1.0]), np.array([100.0, 1.2]), 1e-3).differs


ROWS = [{"x": np.random.default_rng(seed).standard_normal((1, 4), dtype=np.float32)} for seed in range(6)]


def judge(function: object) -> Proven | Refuted | Blind:
    return prove(lambda arrays: {"y": function(arrays["x"])}, ROWS, {"x": 0}, 1e-5)  # type: ignore[operator]


FOOLS = {
    "reads its neighbour": lambda x: x + np.roll(x, 1, axis=0) * 1e-3,
    "reads the row six before": lambda x: np.concatenate([x[:6], x[:-6]])[: len(x)],
    "swaps from 16 rows on": lambda x: x[::-1] if len(x) >= 16 else x,
    "is other at 7 rows": lambda x: x * (1 + (len(x) == 7)),
    "adds less than rounding": lambda x: x + np.float32(1e-7) * x.mean(),
    "adds next to nothing": lambda x: x + np.float32(1e-38) * x.sum(),
    "sees only huge numbers": lambda x: x + float(np.abs(x).max() > 5000),
    "drops rows of a full batch": lambda x: x[:20],
    "repeats rows": lambda x: np.concatenate([x, x[:1]]) if len(x) > 8 else x,
    "gives half the rows": lambda x: x[: (len(x) + 1) // 2],
    "raises in company": lambda x: x if len(x) == 1 else 1 // 0,
}


@pytest.mark.parametrize("name", FOOLS)
def test_the_proof_is_not_fooled(name: str) -> None:
    assert isinstance(judge(FOOLS[name]), Refuted)


def test_honest_rows_are_proven_and_dull_ones_are_not_seen() -> None:
    found = judge(lambda x: np.tanh(x) * 3)
    assert isinstance(found, Proven)
    assert found.output_axes == {"y": 0}
    assert "beside a row of NaN" in found.proof.checks
    turned = judge(lambda x: x.T)
    assert isinstance(turned, Proven)
    assert turned.output_axes == {"y": 1}
    assert isinstance(judge(lambda x: x * 0 + 1), Blind)
    noise = iter(np.linspace(0, 1e-7, 1000, dtype=np.float32))
    unsteady = judge(lambda x: x + next(noise))
    assert isinstance(unsteady, Proven), "an engine that does not repeat itself to the bit is held to the bound alone"


def test_the_bound_grows_with_the_sums() -> None:
    small, large = rounding_bound(linear(width=16)), rounding_bound(linear(width=65536, outputs=1))
    assert 1e-6 < small < large < 1e-3
    assert rounding_bound(zoo.elementwise(TensorProto.FLOAT16)) >= 2**-10, "one step of its own output"
    assert rounding_bound(time_major_lstm()) >= small


def test_twins_change_weights_and_nothing_else() -> None:
    model = linear()
    before = model.SerializeToString()
    random, moved = with_random_weights(model), with_moved_weights(model)
    assert model.SerializeToString() == before
    weights = numpy_helper.to_array(model.graph.initializer[0])
    drawn, near = (numpy_helper.to_array(twin.graph.initializer[0]) for twin in (random, moved))
    assert drawn.std() == pytest.approx(np.sqrt(2 / 4), rel=0.3)
    assert not np.array_equal(near, weights)
    np.testing.assert_allclose(near, weights, rtol=2.5e-7)
    for twin in (random, moved):
        assert [n.op_type for n in twin.graph.node] == ["MatMul"]
        onnx.checker.check_model(twin)


def test_constants_made_by_the_graph_get_random_weights_too() -> None:
    value = helper.make_tensor("v", FLOAT, [1], [0.02])
    model = build(
        [helper.make_node("ConstantOfShape", ["s"], ["W"], value=value), helper.make_node("MatMul", ["x", "W"], ["y"])],
        {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["N", 2])}, {"s": np.array([3, 2], np.int64)},
    )  # fmt: skip
    twin = with_random_weights(model)
    assert [n.op_type for n in twin.graph.node] == ["MatMul"]
    assert len(np.unique(numpy_helper.to_array(twin.graph.initializer[-1]))) == 6
    onnx.checker.check_model(twin)


def test_saturating_nodes_read_a_scaled_value() -> None:
    model = zoo.NOT_BATCHED["softmax over the batch"][0]()
    assert saturating_inputs(model) == ["x"]
    calm = with_scaled_values(model, {"x": np.array(0.5, np.float32)})
    assert [n.op_type for n in calm.graph.node] == ["Mul", "Softmax"]
    onnx.checker.check_model(calm)


def test_freeing_the_batch_changes_shapes_of_values_behind_inputs_only() -> None:
    freed = with_batch_axes(zoo.reshape_inside(), {"x": 0})
    assert freed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == BATCH
    shapes = {t.name: numpy_helper.to_array(t).tolist() for t in freed.graph.initializer}
    targets = [shapes[n.input[1]] for n in freed.graph.node if n.op_type == "Reshape"]
    assert targets == [[6, 0, 4], [1, 1, 4]]


def test_datatypes_are_one_table() -> None:
    assert {kind.config_name for kind in BY_NAME.values()} >= {"TYPE_STRING", "TYPE_FP32", "TYPE_BF16"}
    assert {name: kind.item_bytes for name, kind in BY_NAME.items() if kind.is_float} == {
        "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
    }  # fmt: skip
    with pytest.raises(KeyError, match="unknown datatype 'FLOAT'; expected one of BOOL, UINT8"):
        datatype("FLOAT")
    assert TensorSpec("x", "FP32", (2, DYNAMIC, 3), 1).row_shape == (2, 3)
    assert TensorSpec("x", "FP32", (2, 3)).row_shape == (2, 3)
