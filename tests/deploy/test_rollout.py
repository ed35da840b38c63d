"""Upgrades and rollbacks under load: two pods behind a balancer, rolled one at a time, and no request is lost.

The test does what Kubernetes does, by the probes, the pause and the grace of the Deployment that is shipped: a pod is
in the Service once it has started and is ready; one that ends is taken out, waits for `preStop`, and gets SIGTERM.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.support.haproxy import Balancer, balancer
from tests.support.onnx_models import linear
from tests.support.servers import ROOT, Server, until
from tests.support.stores import Store, moto
from tests.support.uploads import ended, send

DEPLOYMENT = ROOT / "deploy" / "kubernetes" / "base" / "deployment.yaml"
CALL = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
FASTER = 20
"""Pauses are that much shorter than in the Deployment: nothing here has to hear of it over a network."""
pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


def pod_spec() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]
    return found


class Pod:
    """One server, and what the kubelet does with it."""

    def __init__(self, name: str, store: Store, service: Balancer, folder: Path, *flags: str) -> None:
        self.name, self._service, self._spec = name, service, pod_spec()
        env = {**store.env, "BITSERVE_PLAN_KEY": "a key of many characters"}
        self.server = Server(store.url, "--mirror", str(folder), "--watch-s", "0.2", *flags, env=env)

    def enter(self) -> None:
        """Into the Service, once its probes say so."""
        (container,) = self._spec["containers"]
        for probe in ("startupProbe", "readinessProbe"):
            until(lambda probe=probe: self._asks(container[probe]), probe, 120)
        self._service.put_in(self.name, self.server.port)

    def _asks(self, probe: dict[str, Any]) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(self.server.url + probe["httpGet"]["path"], timeout=probe["timeoutSeconds"])
            return 200 <= answer.status_code < 400
        return False

    def leave(self) -> None:
        """As a pod that is deleted."""
        (container,) = self._spec["containers"]
        pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause_s + 30 < self._spec["terminationGracePeriodSeconds"]
        self._service.take_out(self.name)
        time.sleep(pause_s / FASTER)  # preStop is nothing but this
        assert self.server.stop(self._spec["terminationGracePeriodSeconds"] - pause_s) == 0


@contextlib.contextmanager
def load(url: str, clients: int = 4) -> Iterator[list[int]]:
    """Calls all the while; each is answered 200 and rightly. Yields how many were, by client."""
    stop: list[bool] = []
    counts = [0] * clients

    def drive(at: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop:
                answer = client.post("/v2/models/m/infer", json=CALL)
                assert answer.status_code == 200, answer.text
                assert answer.json()["outputs"][0]["data"][0] in (1.75, 3.5)
                counts[at] += 1

    with ThreadPoolExecutor(clients) as pool:
        drivers = [pool.submit(drive, at) for at in range(clients)]
        try:
            yield counts
        finally:
            stop.append(True)
        for driver in drivers:
            driver.result(60)


def test_upgrade_and_rollback_of_the_server_lose_no_request(tmp_path):
    """ "v1" and "v2" differ by a setting, as releases would by their image; new pods come with an empty mirror."""
    with moto() as store, balancer(tmp_path, ["one", "two"]) as service:
        pods: list[Pod] = []
        try:
            for name in ("one", "two"):
                pods.append(Pod(name, store, service, tmp_path / f"{name}-0"))
            answer = send(pods[0].server, "m", linear().SerializeToString(), {"precision": "fp32"})
            assert ended(pods[0].server, answer)["state"] == "succeeded"
            for pod in pods:
                until(lambda pod=pod: pod.server.state("m") == "READY", "m is served")
                pod.enter()
            with load(service.url) as counts:
                for generation, flags in enumerate((["--max-batch-size", "16"], []), start=1):
                    for at in range(2):
                        before = list(counts)
                        name = pods[at].name
                        pods[at].leave()
                        pods[at] = Pod(name, store, service, tmp_path / f"{name}-{generation}", *flags)
                        pods[at].enter()
                        until(lambda before=before: all(n > b for n, b in zip(counts, before, strict=True)), "served")
            assert min(counts) > 20
        finally:
            for pod in pods:
                with contextlib.suppress(Exception):
                    pod.server.stop()


def test_upgrade_and_rollback_of_a_model_lose_no_request(tmp_path):
    """A version comes, is pinned away, and comes back, on both pods at once."""
    with moto() as store, balancer(tmp_path, ["one", "two"]) as service:
        pods = [Pod(name, store, service, tmp_path / name) for name in ("one", "two")]
        try:
            for scale in (1.0, 2.0):
                data = linear(scale=scale).SerializeToString()
                if scale == 1.0:
                    assert ended(pods[0].server, send(pods[0].server, "m", data, {"precision": "fp32"}))["version"] == 1
                    for pod in pods:
                        until(lambda pod=pod: pod.server.state("m") == "READY", "m is served")
                        pod.enter()
            with load(service.url):
                assert ended(pods[1].server, send(pods[1].server, "m", data, {"precision": "fp32"}))["version"] == 2
                for config, served in ((None, 3.5), (b"versions = [1]\n", 1.75), (b"", 3.5)):
                    if config is not None:
                        store.put("m/config.toml", config)
                    for pod in pods:
                        url = f"{pod.server.url}/v2/models/m/infer"
                        until(
                            lambda url=url, served=served: (
                                httpx.post(url, json=CALL).json()["outputs"][0]["data"][0] == served
                            ),
                            f"{served} is served",
                        )
        finally:
            for pod in pods:
                with contextlib.suppress(Exception):
                    pod.server.stop()
