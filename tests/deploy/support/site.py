"""Servers under load with a Prometheus that scrapes them, as in a cluster: replicas of one namespace, and one apart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.deploy.support import simulated_nvml
from tests.deploy.support.prometheus import Prometheus, Target, scraping
from tests.deploy.support.promql import write_rules
from tests.simulated.models import scaled_sums
from tests.support.onnx_models import build, linear, place
from tests.support.servers import Server, free_port, until
from tests.support.uploads import ended, send

__all__ = ["HOLD_REQUESTS", "MAX_ROWS", "Site", "ask", "fours", "under_load"]

HOLD_REQUESTS, MAX_ROWS = 5, 20
"""Of the pod `held`: its first batch leaves when so many requests wait; so many rows may."""
_LOST = "the GPU of lost is lost"
"""A file that makes it so."""
_FLAGS = {
    "cpu": (),
    "held": ("--delay-scheduler", str(HOLD_REQUESTS), "--max-queue-rows", str(MAX_ROWS)),
    "gpu": (),
    "lost": (),
    "fronts": ("--front-ends", "2"),
}


class Site(NamedTuple):
    """Servers by the names of their pods, and who watches them. The pod `gone` has no server."""

    prometheus: Prometheus
    servers: Mapping[str, Server]
    folder: Path

    def lose_gpu(self) -> None:
        """Of the pod `lost`."""
        (self.folder / _LOST).touch()


def fours() -> onnx.ModelProto:
    """Fails in the engine on rows whose length is no multiple of 4."""
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")
    single = TensorProto.FLOAT
    shape = {"shape": np.array([0, 4, -1], np.int64)}
    return build([reshape], {"x": (single, ["N", "T"])}, {"y": (single, ["N", 4, "U"])}, shape)


def ask(server: Server, model: str, rows: int = 1, width: int = 16, timeout_us: int = 0) -> int:
    """The status of a request."""
    parameters = {"parameters": {"timeout": timeout_us}} if timeout_us else {}
    return server.infer(model, {"x": ("FP32", np.ones((rows, width), np.float32))}, **parameters).status_code


def _place_models(folder: Path) -> None:
    place(folder / "cpu", "linear", linear())
    place(folder / "cpu", "fours", fours())
    place(folder / "cpu", "broken", b"not an ONNX model")
    place(folder / "held", "held", linear())
    for pod in ("gpu", "lost"):
        place(folder / pod, "sums", scaled_sums().model)
    (folder / "fronts").mkdir()


def _start(folder: Path, pod: str) -> Server:
    if pod not in ("gpu", "lost"):
        return Server(folder / pod, *_FLAGS[pod], on_gpu=False)
    faults = {"slowest_s": 0.0002, "lost_file": str(folder / _LOST) if pod == "lost" else ""}
    path = os.pathsep.join(filter(None, (str(folder / "nvml"), os.environ.get("PYTHONPATH", ""))))
    return Server(folder / pod, on_gpu=True, env={"SIMULATED_GPU": json.dumps(faults), "PYTHONPATH": path})


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[dict[str, Server]]:
    _place_models(folder)
    (folder / "nvml").mkdir()
    shutil.copy(simulated_nvml.__file__, folder / "nvml" / "pynvml.py")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(_FLAGS)) as pool:
        starting = {pod: pool.submit(_start, folder, pod) for pod in _FLAGS}
        for one in starting.values():
            with contextlib.suppress(AssertionError):  # raised below, when those that did start will be ended
                stack.callback(one.result().stop)
        yield {pod: one.result() for pod, one in starting.items()}


@contextlib.contextmanager
def under_load(folder: Path) -> Iterator[Site]:
    """All of it, with some requests of every kind answered, one build done and one failed, and rates to be seen."""
    with _servers(folder) as servers:
        targets = [Target(one.port, "lost" if pod == "lost" else "prod", pod) for pod, one in servers.items()]
        targets.append(Target(free_port(), "prod", "gone"))
        rules = write_rules(folder / "rules.yaml", hurried=True)
        with scraping(folder, targets, rules) as prometheus:
            site = Site(prometheus, servers, folder)
            _load(site)
            yield site


def _load(site: Site) -> None:
    cpu, gpu = site.servers["cpu"], site.servers["gpu"]
    cpu.wait_ready("linear", "fours")
    until(lambda: cpu.state("broken") == "UNAVAILABLE", "broken is known to be")
    for pod, model in (("held", "held"), ("gpu", "sums"), ("lost", "sums")):
        site.servers[pod].wait_ready(model)
    counted = "count(nv_inference_request_success{model=~'linear|fours|held|sums'}) == 5"
    until(lambda: site.prometheus.query(counted), "zeros of all models are scraped")
    assert ended(cpu, send(cpu, "bad", b"not an ONNX model"))["state"] == "failed"
    assert ended(cpu, send(cpu, "good", linear(8).SerializeToString()))["state"] == "succeeded"

    def seen() -> bool:
        assert {ask(cpu, "linear", rows) for rows in (1, 2, 3)} == {200}
        assert ask(cpu, "linear", width=15) == 400
        assert {ask(gpu, "sums", rows, width=4) for rows in (1, 2, 3)} == {200}
        rates = site.prometheus.query("sum by (pod) (rate(nv_inference_request_success[1m])) > 0")
        return {"cpu", "gpu"} <= {sample.labels["pod"] for sample in rates}

    until(seen, "rates of requests", every_s=0.1)
