"""The image at work, confined as in a cluster: all samples, the protocol's tests from outside, builds, and its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.deploy.support.containers import Container, cache_folder, give, running_container
from tests.deploy.support.image import cpu_image
from tests.deploy.support.image_models import CONFORMANCE, SAMPLES, place_models
from tests.support.servers import ADMIN, ROOT, TOKEN, until

pytestmark = pytest.mark.timeout(900)  # the first test waits for the image, and on first use for its base
EXPECTED_SKIPS = (
    "tried by the synchronous client",
    "this measures a server of its own",
    "a server may leave requests out that it refuses",
    "whether files may be brought is a server's setting",
)
"""Of the protocol's tests against a server that they have not started."""
ZOMBIES = """
import pathlib
stats = [path.read_text().rpartition(")") for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
print(*[head for head, _, tail in stats if tail.split()[0] == "Z"], sep="\\n")
"""
SIGNAL_SERVER = """
import os, pathlib, signal
children = pathlib.Path("/proc/1/task/1/children").read_text().split()
(server,) = [int(child) for child in children if b"serve" in pathlib.Path(f"/proc/{{child}}/cmdline").read_bytes()]
os.kill(server, signal.{})
"""
KILL_BUILDS = """
import os, pathlib, signal
killed = 0
for path in sorted(pathlib.Path("/proc").glob("[0-9]*/cmdline"), key=lambda path: int(path.parts[2])):
    if b"engines.sandbox" in path.read_bytes() and not killed:
        os.kill(int(path.parts[2]), signal.SIGKILL)
        killed += 1
print(killed)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return give(place_models(tmp_path_factory.mktemp("image") / "models"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans, made once for all containers."""
    return cache_folder(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def server(models: Path, cache: Path) -> Iterator[Container]:
    with running_container(cpu_image(), models, cache) as container:
        container.wait_ready(*SAMPLES, *CONFORMANCE)
        yield container


def zombies(of: Container) -> str:
    return of.python(ZOMBIES).strip()


def test_it_is_confined(server: Container) -> None:
    status = server.python("print(open('/proc/1/status').read())")
    words = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert words["Uid"] == words["Gid"] == ["10001"] * 4
    assert all(set(words[kind][0]) == {"0"} for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert words["NoNewPrivs"] == ["1"]
    with pytest.raises(AssertionError, match="Read-only file system"):
        server.python("open('/opt/bitserve/x', 'w')")


def test_the_samples_serve(server: Container) -> None:
    assert len(SAMPLES) == 5
    letter = {"name": "features", "datatype": "FP32", "shape": [1, 16]}
    letter["data"] = [4, 9, 5, 7, 4, 7, 7, 5, 5, 9, 6, 8, 3, 8, 5, 8]
    top = [{"name": "logits", "parameters": {"classification": 1}}]
    call = {"inputs": [letter], "outputs": top}
    answer = httpx.post(f"{server.url}/v2/models/letter_mlp/infer", json=call, timeout=30, verify=False).json()
    assert answer["outputs"][0]["data"][0].endswith(":S")
    with np.load(ROOT / "model_repo/fashion_cnn/heldout.npz") as held:
        images, labels = (held["image"][:100] / 255).astype(np.float32), held["labels"][:100]
    for model in ("fashion_cnn", "fashion_float", "fashion_binary"):
        meta = httpx.get(f"{server.url}/v2/models/{model}", timeout=30, verify=False).json()
        tensor = {"name": meta["inputs"][0]["name"], "datatype": "FP32", "shape": [10, *images.shape[1:]]}
        right = 0
        for rows in range(0, 100, 10):
            tensor["data"] = images[rows : rows + 10].ravel().tolist()
            sent = {"inputs": [tensor]}
            answer = httpx.post(f"{server.url}/v2/models/{model}/infer", json=sent, timeout=30, verify=False).json()
            logits = np.array(answer["outputs"][0]["data"]).reshape(10, -1)
            right += int((logits.argmax(axis=1) == labels[rows : rows + 10]).sum())
        assert right >= 80, model  # of 100: the cards tell of 87 to 92 %


def test_binary_layers_run_in_native_kernels(server: Container) -> None:
    found = json.loads(server.run("bitserve", "inspect", "fashion_binary", "--json"))
    kernels = {layer["kernel"] for layer in found["report"]["layers"] if layer["op_type"].startswith("Binary")}
    assert kernels
    assert not any("convolution" in kernel.lower() for kernel in kernels)


def test_threads_follow_the_limit_of_cpu(server: Container) -> None:
    """Of one CPU, here where there are two or more."""
    assert len(os.sched_getaffinity(0)) >= 2
    for version in SAMPLES:
        found = json.loads(server.run("bitserve", "inspect", version.partition("/")[0], "--json"))
        assert found["manifest"]["threads"] == 1, version


def test_the_protocols_tests_pass_from_outside(server: Container) -> None:
    command = [sys.executable, "-m", "pytest", "tests/conformance", "--server", server.url, "-rs"]
    env = {name: value for name, value in os.environ.items() if name != "CI"}  # which skips are right is said above
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert [line for line in skips if not any(reason in line for reason in EXPECTED_SKIPS)] == []
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) > 80


def test_the_health_check(server: Container) -> None:
    assert server.store.podman_output("healthcheck", "run", server.name)[0] == 0


def test_the_health_check_finds_a_server_that_hangs(server: Container) -> None:
    server.python(SIGNAL_SERVER.format("SIGSTOP"))
    try:
        assert server.store.podman_output("healthcheck", "run", server.name)[0] != 0
    finally:
        server.python(SIGNAL_SERVER.format("SIGCONT"))
    until(server.alive, "the server goes on", 10)
    assert server.store.podman_output("healthcheck", "run", server.name)[0] == 0


def test_it_compiles_to_fewer_bits_by_a_search(server: Container, tmp_path: Path) -> None:
    """Nearly all that the image holds takes part; what was left out of it is not missed."""
    heldout = ROOT / "model_repo/fashion_cnn/heldout.npz"
    with np.load(heldout) as held:
        np.savez(tmp_path / "calibration.npz", image=held["image"][:100])
    command = [
        sys.executable, "-m", "app", "compile", ROOT / "model_repo/fashion_cnn/1/model.onnx", "--name", "garments",
        "--calibration", tmp_path / "calibration.npz", "--validation", heldout, "--metric", "top1",
        "--accuracy-budget", "0.0001", "--search", "bayesian", "--trials", "4", "--time-limit-s", "30",
        "--spec", '{"inputs": {"image": {"layout": "NCHW", "scale": [255]}}}', "--server", server.url,
    ]  # fmt: skip
    env = {**os.environ, "BITSERVE_ADMIN_TOKEN": TOKEN}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{server.log()}"
    report = httpx.get(f"{server.url}/v2/models/garments/versions/1/report", timeout=30, verify=False).json()
    assert "int8" in {one["precision"] for one in report["candidates"]}, report["candidates"]
    page = httpx.get(
        f"{server.url}/v2/models/garments/versions/1/report", headers={"Accept": "text/html"}, timeout=60, verify=False
    )
    assert page.headers["content-type"].startswith("text/html")
    assert "<svg" in page.text  # drawn by matplotlib
    until(lambda: zombies(server) == "", "no process of the build is left as a zombie", 10)


def test_a_build_that_is_killed_leaves_nothing(server: Container) -> None:
    """Its processes lose their parent, and process 1 has to take them in."""
    files = {
        "model": (ROOT / "model_repo/fashion_cnn/1/model.onnx").read_bytes(),
        "calibration": (ROOT / "model_repo/fashion_cnn/heldout.npz").read_bytes(),
    }
    until(lambda: zombies(server) == "", "nothing before it", 10)
    url = f"{server.url}/v2/repository/models/killed/compile"
    begun = httpx.post(url, files=files, data={"spec": "{}"}, headers=ADMIN, timeout=60, verify=False)
    assert begun.status_code == 202, begun.text
    build = f"{server.url}{begun.headers['location']}"
    until(lambda: server.python(KILL_BUILDS).strip() == "1", "a build to kill", 30)
    state: dict[str, Any] = until(
        lambda: (
            (found := httpx.get(build, headers=ADMIN, timeout=30, verify=False).json())["state"] != "running" and found
        ),
        "the build ended",
        60,
    )
    assert state["state"] == "failed", state
    until(lambda: zombies(server) == "", "nothing is left of it", 10)
    assert server.alive()


def ask(url: str, answers: list[Any], value: float) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [value] * 16}
    try:
        got = httpx.post(f"{url}/v2/models/patient/infer", json={"inputs": [tensor]}, timeout=30, verify=False)
        answers.append((got.status_code, got.json()["outputs"][0]["data"][0] / value))
    except (httpx.HTTPError, KeyError) as error:
        answers.append(error)


def test_it_stops_when_it_has_answered(models: Path, cache: Path) -> None:
    """`podman stop` is SIGTERM for process 1, which hands it on; those in flight wait two seconds for others."""
    with running_container(cpu_image(), models, cache) as container:
        container.wait_ready("patient/1")
        answers: list[Any] = []
        asking = [threading.Thread(target=ask, args=(container.url, answers, 1.0 + one)) for one in range(8)]
        for thread in asking:
            thread.start()
        line = 'nv_inference_pending_request_count{model="patient",version="1"} 8'
        page = f"{container.url}/metrics"
        until(lambda: line in httpx.get(page, timeout=5, verify=False).text, "eight requests wait", 5, 0.01)
        assert answers == []
        assert container.stop() == 0
        for thread in asking:
            thread.join(10)
        assert answers == [(200, pytest.approx(answers[0][1]))] * 8
        assert not [line for line in container.log().splitlines() if '"level": "ERROR"' in line]
