"""Probes and metrics of the manifests, asked of a real server."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.support.render import (
    FLAVOURS,
    KSERVE,
    Object,
    helm_template,
    kustomize,
    of_kind,
    overlay,
    values_file,
)
from tests.deploy.support.schemas_names import PROBES, server_pods
from tests.deploy.support.schemas_server import probe_paths, server_findings
from tests.support.onnx_models import linear, place
from tests.support.servers import ROOT, Server, running, until

pytestmark = pytest.mark.timeout(600)  # tools are installed on first use


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("models")) as server:
        yield server


@pytest.fixture(scope="module")
def keda() -> list[Object]:
    return kustomize(overlay("keda"))


def container_of(objects: list[Object]) -> Any:
    ((_, _, container),) = server_pods(objects)
    return container


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_server_has_what_an_overlay_asks(server: Server, flavour: str) -> None:
    objects = kustomize(overlay(flavour))
    assert probe_paths(objects) == {"/v2/health/started", "/v2/health/ready", "/v2/health/live"}
    assert server_findings(objects, server.url) == []


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_server_has_what_the_chart_asks(server: Server, flavour: str) -> None:
    assert server_findings(helm_template(values_file(flavour)), server.url) == []


def test_a_server_has_what_kserve_asks(server: Server) -> None:
    assert server_findings(kustomize(KSERVE), server.url) == []


def test_a_path_that_the_server_does_not_have_is_found(server: Server, keda: list[Object]) -> None:
    objects = copy.deepcopy(keda)
    container_of(objects)["readinessProbe"]["httpGet"]["path"] = "/healthz"
    assert server_findings(objects, server.url) == ["probe /healthz: the server answers 404"]


def test_a_probe_that_is_missing_is_found(server: Server, keda: list[Object]) -> None:
    objects = copy.deepcopy(keda)
    del container_of(objects)["startupProbe"]
    assert server_findings(objects, server.url) == ["Deployment/bitserve/server: there is no startupProbe"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum(rate(bitserve_queue_seconds_sum[2m]))", "no metric bitserve_queue_seconds_sum"),
        ("sum(rate(bitserve_queue_duration_seconds_sum[2m])", "not PromQL"),
    ],
)
def test_a_query_that_finds_nothing_is_found(server: Server, keda: list[Object], query: str, said: str) -> None:
    objects = copy.deepcopy(keda)
    of_kind(objects, "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["query"] = query
    found = server_findings(objects, server.url)
    assert "not the one of the monitoring component" in found[0]
    assert said in found[1]


def test_a_metric_that_no_rule_makes_is_found(server: Server) -> None:
    objects = copy.deepcopy(kustomize(overlay("s3")))
    of_kind(objects, "HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["pods"]["metric"]["name"] = "avg_time_queue_us"
    assert ["no metric avg_time_queue_us" in found for found in server_findings(objects, server.url)] == [True]


def test_a_pod_is_started_once_its_models_are_loaded_or_cannot_be(tmp_path: Path, keda: list[Object]) -> None:
    """What keeps a rollout from sending requests to a pod that has no models yet; readiness alone would not."""
    place(tmp_path, "good", linear())
    place(tmp_path, "broken", b"no model")
    paths = {kind: container_of(keda)[kind]["httpGet"]["path"] for kind in PROBES}
    with running(tmp_path) as server:

        def status(kind: str) -> int:
            return httpx.get(server.url + paths[kind], timeout=10, verify=False).status_code

        assert [status(kind) for kind in PROBES] == [503, 200, 200]
        until(lambda: status("startupProbe") == 200, "the pod is started")
        assert (server.state("good"), server.state("broken")) == ("READY", "UNAVAILABLE")
        assert [status(kind) for kind in PROBES] == [200, 200, 200]


def test_a_service_of_the_servers_name_would_set_its_port(tmp_path: Path) -> None:
    """What `enableServiceLinks: false` is for."""
    env = {**os.environ, "BITSERVE_REPOSITORY": str(tmp_path), "BITSERVE_PORT": "tcp://10.0.0.1:8000"}
    done = subprocess.run([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=env, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"unable to parse string as an integer" in done.stderr
