"""Networks of the shapes that people run, with random weights: how near INT8 stays to FP32, and that pruning pays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from benchmarks.networks import resnet18
from benchmarks.pictures import drawn_pictures
from benchmarks.resnet_race import cosine_less_mean
from engines.handover import ENGINE_FILE
from engines.hardware import has_vnni
from engines.manifest import Manifest
from engines.reference import Reference
from engines.spec import Spec
from engines.targets.openvino import reimported, runner
from tests.support.builds import built
from tests.support.onnx_models import FLOAT, build

F32 = np.float32
WIDTH, SIDE = 96, 40


def served(folder: Path, manifest: Manifest, outputs: list[str]) -> runner:
    blob = (folder / "out" / ENGINE_FILE).read_bytes()
    return runner(reimported(blob, manifest.streams, manifest.threads), outputs)


def test_int8_of_resnet18_answers_other_pictures_as_fp32_does(tmp_path: Path) -> None:
    """ResNet-50 takes a minute: `python -m benchmarks precision` holds it to the same. The budget leaves one engine
    that may be chosen: with weights of 8 bits, of 7 where those overflow.
    """
    budget = 0.0003 if has_vnni() else 0.0006
    spec = Spec(metric="cosine", accuracy_budget=budget, calibrator="minmax")
    manifest, report = built(tmp_path, resnet18(), spec, calibration={"image": drawn_pictures(32, seed=0)})
    assert manifest.precision == "int8"
    assert any(layer.precision in ("int8", "uint8") for layer in report.layers)
    asked = {"image": drawn_pictures(32, seed=1)}
    answers = Reference(resnet18())(asked)["logits"]
    differing = answers - answers.mean(axis=0)
    assert np.linalg.norm(differing) > 0.05 * np.linalg.norm(answers), "the pictures are not all one to it"
    assert cosine_less_mean(answers, served(tmp_path, manifest, ["logits"])(asked)["logits"]) >= 0.999


def convolutions(seed: int = 0) -> onnx.ModelProto:
    """Five convolutions of 96 filters; nearly all that it takes is multiplied in four of them."""
    rng = np.random.default_rng(seed)
    nodes, stored, last, channels = [], {}, "image", 3
    for i in range(5):
        stored[f"w{i}"] = (rng.standard_normal((WIDTH, channels, 3, 3)) * np.sqrt(2 / (9 * channels))).astype(F32)
        stored[f"b{i}"] = np.zeros(WIDTH, F32)
        nodes.append(helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        last, channels = f"r{i}", WIDTH
    stored["head"] = (rng.standard_normal((WIDTH, 10)) / np.sqrt(WIDTH)).astype(F32)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "head"], ["y"], name="product"),
    ]
    return build(nodes, {"image": (FLOAT, [None, 3, SIDE, SIDE])}, {"y": (FLOAT, [None, 10])}, stored, 21)


def test_without_two_fifths_of_its_filters_a_network_is_faster(tmp_path: Path) -> None:
    """By the race of its build, turn by turn. Between two such layers (3/5)^2 of the products are left."""
    images = np.random.default_rng(1).standard_normal((32, 3, SIDE, SIDE)).astype(F32)
    spec = Spec(precision="fp32", sparsity="channels", metric="cosine", accuracy_budget=0.5)
    _, report = built(tmp_path, convolutions(), spec, calibration={"image": images})
    assert report.chosen == "fp32, 40% of the filters removed"
    whole, pruned = report.candidates
    assert pruned.size_bytes < 0.6 * whole.size_bytes
    assert pruned.latency_us < 0.8 * whole.latency_us
    assert pruned.rows_per_s > 1.25 * whole.rows_per_s
