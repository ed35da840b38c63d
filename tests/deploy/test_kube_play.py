"""The Deployment of the cpu overlay itself, run by podman: settings, volumes, limits and security as written there."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.support.image import cpu_image, store
from tests.deploy.support.render import Object, kustomize, of_kind, overlay
from tests.support.onnx_models import linear
from tests.support.servers import ROOT, TOKEN, free_port, until

pytestmark = pytest.mark.timeout(900)  # the first test waits for the image, and on first use for its base


@dataclass(frozen=True)
class Pod:
    """A pod that runs; `spec` is the rendered one, `container` the name that podman gave its server."""

    url: str
    spec: dict[str, Any]
    container: str


def playable(objects: list[Object], port: int) -> tuple[list[Object], dict[str, Any]]:
    """What podman 4.3.1 can do of it, on a port of its own; and the pod's spec as it was.

    It reads no Secret with keys left out, has no `sleep` before the end, and gives a volume to nobody: so the token is
    a plain value, and volumes are podman's own, which take their owner from the image's folders.
    """
    (deployment,), (settings,) = of_kind(objects, "Deployment"), of_kind(objects, "ConfigMap")
    deployment, settings = copy.deepcopy(deployment), copy.deepcopy(settings)
    asked = copy.deepcopy(deployment["spec"]["template"]["spec"])
    settings["data"]["BITSERVE_PORT"] = str(port)
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert [one["valueFrom"]["secretKeyRef"]["name"] for one in server["env"]] == ["bitserve-tokens"] * 2
    server["env"] = [{"name": "BITSERVE_ADMIN_TOKEN", "value": TOKEN}]
    for name in ("lifecycle", "startupProbe", "readinessProbe", "livenessProbe"):
        server.pop(name)
    for volume in pod["volumes"]:
        volume.pop("persistentVolumeClaim", None)
        volume["emptyDir"] = {}
    server.pop("ports")  # of a bridge; here the port is the host's own
    return [settings, deployment], asked


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    image, port = cpu_image(), free_port()
    objects, spec = playable(kustomize(overlay("cpu")), port)
    assert image == f"localhost/{spec['containers'][0]['image']}", (
        "the overlay asks for another image than is built here"
    )
    manifest = tmp_path_factory.mktemp("kube") / "pod.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    try:
        store().podman("kube", "play", "--network", "host", str(manifest))
        names = store().podman("ps", "--format", "{{.Names}}").split()
        (container,) = [name for name in names if name.endswith("-server")]
        yield Pod(f"http://127.0.0.1:{port}", spec, container)
    finally:
        store().podman_output("kube", "down", str(manifest))


def passes(pod: Pod, probe: str) -> bool:
    """One of the pod's probes, asked as the kubelet asks."""
    asked = pod.spec["containers"][0][probe]
    if "exec" in asked:
        return store().podman_output("exec", pod.container, *asked["exec"]["command"])[0] == 0
    try:
        return httpx.get(pod.url + asked["httpGet"]["path"], timeout=5, verify=False).is_success
    except httpx.HTTPError:
        return False


def inside(pod: Pod, *command: str) -> str:
    return store().podman("exec", pod.container, *command)


def test_it_serves_a_request(pod: Pod, tmp_path: Path) -> None:
    """Of a model that is sent to it: its volume is empty at first."""
    until(lambda: passes(pod, "readinessProbe"), "the pod is ready", 60)
    (tmp_path / "linear.onnx").write_bytes(linear().SerializeToString())
    command = [
        sys.executable,
        "-m",
        "app",
        "compile",
        tmp_path / "linear.onnx",
        "--name",
        "linear",
        "--server",
        pod.url,
    ]
    done = subprocess.run(
        [*command, "--token", TOKEN], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{store().podman_output('logs', pod.container)[1]}"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
    answer = httpx.post(f"{pod.url}/v2/models/linear/infer", json={"inputs": [tensor]}, timeout=30, verify=False)
    # y[j] = the sum of (i + 1) / 16 over i = j, j + 4, j + 8, j + 12
    assert answer.json()["outputs"][0]["data"] == pytest.approx([28 / 16, 32 / 16, 36 / 16, 40 / 16], rel=1e-6)


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_its_probes_pass(pod: Pod, probe: str) -> None:
    until(lambda: passes(pod, probe), probe, 60, 0.2)


def test_it_is_as_restricted_as_is_written(pod: Pod) -> None:
    status = dict(re.findall(r"^(\w+):\s*(.*)$", inside(pod, "cat", "/proc/1/status"), flags=re.M))
    user, group = (pod.spec["securityContext"][name] for name in ("runAsUser", "runAsGroup"))
    assert (status["Uid"].split()[0], status["Gid"].split()[0]) == (str(user), str(group))
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    with pytest.raises(AssertionError, match="Read-only file system"):
        inside(pod, "touch", "/opt/bitserve/x")
    for mount in pod.spec["containers"][0]["volumeMounts"]:
        inside(pod, "touch", f"{mount['mountPath']}/x")


def test_threads_follow_its_limit(pod: Pod) -> None:
    limits = pod.spec["containers"][0]["resources"]["limits"]
    told = inside(pod, "python", "-c", "from engines.runtime import usable_threads; print(usable_threads())")
    assert int(told) == min(int(limits["cpu"]), int(inside(pod, "nproc")))
    found = json.loads(store().podman("container", "inspect", pod.container))[0]["HostConfig"]
    assert found["Memory"] == int(limits["memory"].removesuffix("Gi")) * 2**30
