"""A real Prometheus on a free loopback port, with a folder of its own, ended by its id; and promtool."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.support.servers import free_port, until

__all__ = ["Prometheus", "Sample", "Target", "promtool", "scraping"]

_SCRAPE_S = 0.5


def _binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}; it comes with the package prometheus")
    return found


def promtool(*arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Its exit code is the verdict, and its output says why."""
    command = [_binary("promtool"), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


class Target(NamedTuple):
    """A server to scrape, with the labels that a cluster would give it."""

    port: int
    namespace: str
    pod: str


class Sample(NamedTuple):
    """One of an instant vector."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """`rules` is a file of groups; they are evaluated as often as targets are scraped."""

    def __init__(self, folder: Path, targets: Sequence[Target], rules: Path) -> None:
        every = f"{round(1000 * _SCRAPE_S)}ms"
        jobs = [
            {"targets": [f"127.0.0.1:{one.port}"], "labels": {"namespace": one.namespace, "pod": one.pod}}
            for one in targets
        ]
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "bitserve", "metrics_path": "/metrics", "static_configs": jobs}],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "prometheus.log").open("wb")
        command = [
            _binary("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, cwd=folder)
        until(lambda: self._is_ready() or self._process.poll() is not None, "Prometheus is ready", every_s=0.1)
        assert self._process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self._get("/-/ready").status_code == 200
        return False

    def _get(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(self.url + path, params=parameters, timeout=10, verify=False)

    def query(self, expr: str) -> list[Sample]:
        """The instant vector now; a number is one sample without labels. AssertionError where it is no query."""
        answer = self._get("/api/v1/query", query=expr)
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        data: dict[str, Any] = answer.json()["data"]
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]

    def numbers(self, expr: str) -> list[Sample]:
        """The same, without what is not a number."""
        return [sample for sample in self.query(expr) if not math.isnan(sample.value)]

    def fired(self, alert: str) -> list[Mapping[str, str]]:
        """The labels with which it has fired since the start."""
        selector = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
        return [sample.labels for sample in self.query(f"count_over_time({selector}[1h])")]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@contextlib.contextmanager
def scraping(folder: Path, targets: Sequence[Target], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus; ended however the test ends."""
    prometheus = Prometheus(folder, targets, rules)
    try:
        yield prometheus
    finally:
        prometheus.stop()
