"""A build for the CPU and for GPUs at once: both are made of one graph, or it is said why not, and the CPU serves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper

from engines import gpu_plans
from engines.build import build as run_build
from engines.manifest import Manifest, decode
from engines.report import Report, TargetReport
from engines.request import BuildRequest
from engines.spec import Spec, encode_spec
from engines.targets import tensorrt_process
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from tests.passes.networks import recurrent
from tests.passes.test_tensorrt_rules import lstm
from tests.support.builds import built
from tests.support.onnx_models import FLOAT, build
from tests.support.servers import ADMIN, ROOT, Server, running
from tests.support.uploads import arrays, ended, send

SAMPLES = ROOT / "model_repo" / "fashion_cnn"
MODEL = SAMPLES / "1" / "model.onnx"
BOTH = ("openvino", "tensorrt-rtx")


def images() -> tuple[np.ndarray, np.ndarray]:
    held = np.load(SAMPLES / "heldout.npz")
    return held["image"].astype(np.float32) / 255, held["labels"]


def of(report: Report, target: str) -> TargetReport:
    return next(one for one in report.targets if one.target == target)


def cnn(folder: Path, **keys: Any) -> tuple[Manifest, Report]:
    pictures, labels = images()
    spec = Spec(**{"targets": BOTH, "metric": "top1", "accuracy_budget": 0.02, **keys})
    given = {"calibration": {"image": pictures[:100]}, "validation": {"image": pictures[100:], "labels": labels[100:]}}
    return built(folder, onnx.load(MODEL), spec, **given)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def test_the_cnn_sample_is_compiled_for_both_by_the_command(tmp_path: Path) -> None:
    pictures, labels = images()
    (tmp_path / "c.npz").write_bytes(arrays(image=pictures[:100]))
    (tmp_path / "v.npz").write_bytes(arrays(image=pictures[100:], labels=labels[100:]))
    command = [
        sys.executable, "-m", "app", "compile", str(MODEL), "--name", "cnn", "--repository", str(tmp_path / "models"),
        "--calibration", str(tmp_path / "c.npz"), "--validation", str(tmp_path / "v.npz"), "--json",
        "--targets", "openvino,tensorrt-rtx", "--precision", "int8", "--accuracy-budget", "0.02", "--metric", "top1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    targets = {one["target"]: one for one in json.loads(done.stdout)["targets"]}
    assert {name: (one["made"], one["precision"]) for name, one in targets.items()} == dict.fromkeys(
        BOTH, (True, "int8")
    )
    manifest = decode((tmp_path / "models" / "cnn" / "1" / "manifest.json").read_bytes())
    (plan,) = manifest.plans
    data = (tmp_path / "models" / ".cache" / manifest.key / plan.file).read_bytes()
    assert (len(data), data[:4]) == (plan.size_bytes, b"vtrt")
    assert (plan.version, plan.sms) == ("1.7.1.116", (80, 86, 89, 120))


def test_the_same_over_http_and_the_cpu_serves(server: Server) -> None:
    pictures, labels = images()
    answer = send(
        server, "cnn", MODEL.read_bytes(),
        {"targets": BOTH, "metric": "top1", "accuracy_budget": 0.02, "gpus": ["sm86"]},
        calibration=arrays(image=pictures[:100]), validation=arrays(image=pictures, labels=labels),
    )  # fmt: skip
    done = ended(server, answer)
    assert done["state"] == "succeeded", done["error"]
    assert any("build tensorrt-rtx" in json.dumps(line) for line in _events(server, answer))
    report = httpx.get(f"{server.url}{done['report']}").json()
    cpu, gpu = report["targets"]
    assert (cpu["target"], cpu["made"], gpu["target"], gpu["made"], gpu["gpus"]) == (
        "openvino", True, "tensorrt-rtx", True, ["SM86"],
    )  # fmt: skip
    assert gpu["network"]["QUANTIZE INT8"] >= 1
    judged = next(one for one in report["candidates"] if one["name"] == gpu["chosen"])
    assert (judged["judged_by"], judged["latency_us"], judged["passed"]) == ("ONNX Runtime", None, True)
    answer = server.infer("cnn", {"image": ("FP32", pictures[:32].tolist())})
    scores = np.array(answer.json()["outputs"][0]["data"]).reshape(32, 10)
    assert (scores.argmax(axis=1) == labels[:32]).mean() > 0.85


def _events(server: Server, answer: httpx.Response) -> list[Any]:
    text = httpx.get(f"{server.url}{answer.headers['location']}/events", headers=ADMIN).text
    return [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]


@pytest.mark.parametrize(("precision", "kinds"), [("fp32", {"FP32"}), ("fp16", {"FP32", "FP16"})])
def test_each_precision_is_what_the_network_has(precision: str, kinds: set[str], tmp_path: Path) -> None:
    _, report = cnn(tmp_path, precision=precision)
    gpu = of(report, "tensorrt-rtx")
    assert (gpu.made, gpu.precision) == (True, precision), gpu.reason
    assert {key.split()[1] for key in gpu.network if key.startswith(("CONV", "ACT", "REDUCE", "MATRIX"))} == kinds


def test_the_fewest_bits_that_hold_the_budget_are_taken(tmp_path: Path) -> None:
    manifest, report = cnn(tmp_path)
    gpu = of(report, "tensorrt-rtx")
    assert gpu.chosen.endswith("else fp16")
    assert "CONVOLUTION FP16" in gpu.network
    assert of(report, "openvino").precision == manifest.precision
    judged = [one for one in report.candidates if one.target == "tensorrt-rtx"]
    assert [one.passed for one in judged][-1]
    assert all(one.judged_by == "ONNX Runtime" for one in judged)


def test_a_profile_for_each_bucket(tmp_path: Path) -> None:
    manifest, report = cnn(tmp_path, precision="fp32", buckets=(1, 8, 16))
    profiles = of(report, "tensorrt-rtx").profiles
    assert [profile["image"][0][0] for profile in profiles] == [1, 8, 16]
    assert manifest.plans[0].profiles == profiles


def test_a_set_of_profiles_for_each_instance(tmp_path: Path) -> None:
    manifest, report = cnn(tmp_path, precision="fp32", buckets=(1, 8), profile_sets=2)
    profiles = of(report, "tensorrt-rtx").profiles
    assert [profile["image"][0][0] for profile in profiles] == [1, 8, 1, 8]
    assert (manifest.plans[0].profiles, manifest.plans[0].profile_sets) == (profiles, 2)


def test_what_cannot_be_made_is_said_and_the_others_are(tmp_path: Path) -> None:
    manifest, report = cnn(tmp_path, targets=("openvino", "tensorrt", "tensorrt-rtx"), precision="fp32")
    missing = of(report, "tensorrt")
    assert (missing.made, "target 'tensorrt' needs a library" in missing.reason) == (False, True)
    assert of(report, "tensorrt-rtx").made
    assert [plan.target for plan in manifest.plans] == ["tensorrt-rtx"]


BAD_ENDS = {
    "abort": ("import os; os.abort()", "ended by SIGABRT"),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
    "hang": ("import threading; threading.Event().wait()", "did not end within 1 s"),
}


@pytest.mark.parametrize("name", BAD_ENDS)
def test_a_builder_that_ends_badly_costs_its_plan_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = BAD_ENDS[name]
    monkeypatch.setattr(tensorrt_process, "BUILDER", (sys.executable, "-c", code))
    monkeypatch.setattr(tensorrt_process, "_LONGEST_S", 1.0 if name == "hang" else 60.0)
    manifest, report = cnn(tmp_path, precision="fp32")
    gpu = of(report, "tensorrt-rtx")
    assert (gpu.made, said in gpu.reason) == (False, True), gpu.reason
    assert (manifest.precision, manifest.plans) == ("fp32", ())


REFUSES_HALVES = """
import sys
import onnx
from engines.__main__ import main
graph = onnx.load(sys.argv[2])
if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer):
    sys.exit("it takes no halves")
sys.exit(main(["plan", *sys.argv[1:]]))
"""


def test_what_its_builder_refuses_is_followed_by_the_next_form_that_holds_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_process, "BUILDER", (sys.executable, "-c", REFUSES_HALVES))
    manifest, report = cnn(tmp_path)
    gpu = of(report, "tensorrt-rtx")
    assert gpu.made, gpu.reason
    assert gpu.chosen.endswith("else fp32")
    assert not any("FP16" in key for key in gpu.network)
    assert [plan.precision for plan in manifest.plans] == ["int8"]
    judged = [one.name for one in report.candidates if one.target == "tensorrt-rtx"]
    assert len(judged) == len(set(judged)) >= 2


def test_pruned_weights_are_sparse_to_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    build_apart = tensorrt_process.build_apart

    def noted(target: str, model: onnx.ModelProto, options: PlanOptions, *rest: Any) -> tuple[bytes, BuiltPlan]:
        asked.append(options.is_sparse)
        weights = onnx.numpy_helper.to_array(max(model.graph.initializer, key=lambda one: len(one.raw_data)))
        asked.append(bool((weights == 0).mean() >= 0.5))
        return build_apart(target, model, options, *rest)

    monkeypatch.setattr(gpu_plans, "build_apart", noted)
    _, report = cnn(tmp_path, sparsity="2:4", precision="fp32", accuracy_budget=0.1)
    assert of(report, "tensorrt-rtx").chosen == "fp32, 2:4"
    assert asked == [True, True]


def test_a_build_tells_how_far_its_plan_is(tmp_path: Path) -> None:
    """The shares of the builder's own monitor, within the stage; they never fall."""
    (tmp_path / "model.onnx").write_bytes(MODEL.read_bytes())
    (tmp_path / "spec.json").write_bytes(encode_spec(Spec(targets=BOTH, precision="fp32", gpus=("sm86",))))
    told: list[tuple[str, float]] = []
    (tmp_path / "out").mkdir()
    run_build(BuildRequest.of_folder(tmp_path), tmp_path / "out", lambda stage, share: told.append((stage, share)))
    shares = [share for stage, share in told if stage == "build tensorrt-rtx"]
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert shares[0] == 0.0
    assert shares[-1] == 1.0


def test_an_operator_that_tensorrt_has_not_is_named_and_openvino_serves_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("BitwiseAnd", ["x", "mask"], ["low"], name="keep_low_bits"),
        helper.make_node("Cast", ["low"], ["f"], name="float", to=FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="product"),
    ]
    stored = {"mask": np.array(7, np.int32), "w": np.eye(4, dtype=np.float32)}
    model = build(nodes, {"x": (onnx.TensorProto.INT32, ["N", 4])}, {"y": (FLOAT, ["N", 4])}, stored, 21)
    manifest, report = built(tmp_path, model, Spec(targets=BOTH, precision="fp32"))
    gpu = of(report, "tensorrt-rtx")
    assert not gpu.made
    assert "keep_low_bits" in gpu.reason
    assert (manifest.target, manifest.plans) == ("openvino", ())


def pair(zero: np.ndarray) -> onnx.ModelProto:
    """A model that came with roundings of its own."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="back"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    weights = np.random.default_rng(0).standard_normal((4, 4), dtype=np.float32)
    stored = {"s": np.array(0.1, np.float32), "z": zero, "w": weights}
    return build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])}, stored, 21)


@pytest.mark.parametrize("zero", [np.array(0, np.uint8), np.array(3, np.int8)], ids=["unsigned", "a zero point"])
def test_roundings_that_tensorrt_would_take_for_others_are_named_and_openvino_serves_them(
    zero: np.ndarray, tmp_path: Path
) -> None:
    manifest, report = built(tmp_path, pair(zero), Spec(targets=BOTH, precision="fp32"))
    gpu = of(report, "tensorrt-rtx")
    assert not gpu.made
    assert gpu.reason.endswith("with a zero point of 0 alone; these are others: round, back")
    assert (manifest.target, manifest.plans) == ("openvino", ())


@pytest.mark.parametrize("form", ["layout", "input_forget"])
def test_forms_of_recurrent_layers_that_tensorrt_has_not_are_rewritten_for_both(form: str, tmp_path: Path) -> None:
    _, report = built(tmp_path, lstm(**{form: 1}), Spec(targets=BOTH, precision="fp32"))
    assert [one.made for one in report.targets] == [True, True], report.targets[1].reason
    assert report.accuracy.over_bound == 0


def test_lengths_of_sequences_stay_in_fp32_layers(tmp_path: Path) -> None:
    model = recurrent("GRU", "forward", layers=1, opset=21, with_lengths=True)
    _, report = built(tmp_path, model, Spec(targets=BOTH, precision="fp16"))
    gpu = of(report, "tensorrt-rtx")
    assert gpu.made, gpu.reason
    assert {key for key in gpu.network if key.startswith("MATRIX_MULTIPLY")} == {"MATRIX_MULTIPLY FP32"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", [onnx.TensorProto.INT32, onnx.TensorProto.INT64])
def test_a_plan_counts_what_it_would_answer_wrongly(tmp_path: Path, kind: int, precision: str) -> None:
    """A word is hashed and looked up: the engine's guards are the plan's."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(0)
    stored = {
        "seven": np.array(7, dtype), "table": rng.standard_normal((1000, 16), np.float32),
        "w": rng.standard_normal((16, 4), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["t", "seven"], ["i"], "hash"),
        helper.make_node("Gather", ["table", "i"], ["e"], "look"),
        helper.make_node("ReduceMean", ["e"], ["m"], "mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], "score"),
    ]
    model = build(nodes, {"t": (kind, ["n", 12])}, {"y": (FLOAT, ["n", 4])}, stored)
    manifest, report = built(tmp_path, model, Spec(targets=BOTH, precision=precision))
    made = of(report, "tensorrt-rtx")
    assert made.made, made.reason
    (plan,) = manifest.plans
    assert "Gather 'look' looks up an index outside its table" in plan.guards
    assert plan.guards == made.guards
    assert set(manifest.guards) - {""} == set(plan.guards) - {""}
