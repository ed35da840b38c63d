"""A cluster for servers of a test: the double of its API, the pod they run in, and what a node does with Jobs."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.deploy.support.render import kustomize, of_kind, overlay
from tests.support.kubernetes import Kubernetes, run_container
from tests.support.servers import Server, running
from tests.support.stores import Store

__all__ = ["KEY", "Kubelet", "cluster_of", "serving"]

KEY = {"BITSERVE_PLAN_KEY": "a key of many characters"}
Object = dict[str, Any]


@functools.cache
def _template() -> Object:
    (deployment,) = of_kind(kustomize(overlay("s3")), "Deployment")
    template: Object = deployment["spec"]["template"]
    return template


def own_pod() -> Object:
    """The servers' own, as `kubectl apply` makes it of the overlay s3; named as this machine is."""
    template = _template()
    metadata = {"name": socket.gethostname(), "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@contextlib.contextmanager
def cluster_of(token: str = "let-me-in") -> Iterator[Kubernetes]:
    with Kubernetes(token=token) as made:
        made.put_pod(own_pod())
        yield made


@contextlib.contextmanager
def serving(
    store: Store, cluster: Kubernetes, folder: Path, *flags: str, kubeconfig: Path | None = None
) -> Iterator[Server]:
    """A server with the store, which has its builds carried out in the cluster."""
    folder.mkdir(exist_ok=True)
    kubeconfig = kubeconfig or cluster.kubeconfig(folder)
    env = {**store.env, **KEY, "KUBECONFIG": str(kubeconfig), "BITSERVE_BUILD_EXECUTOR": "kubernetes"}
    with running(store.url, "--watch-s", "0.2", *flags, env=env) as server:  # type: ignore[arg-type]
        yield server


class Kubelet:
    """Runs the containers of Jobs as processes of this machine, each in a thread, until the Job has ended."""

    def __init__(self, cluster: Kubernetes, store: Store, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.env: Mapping[str, str] = {**store.env, **KEY, "BITSERVE_REPOSITORY": store.url}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.begun = threading.Semaphore(0)
        self.gone: set[str] = set()
        """Jobs of which nothing more is told."""
        cluster.on_create, cluster.on_delete = self.run, self.delete

    def log(self, number: int) -> str:
        return (self.folder / f"pod-{number}.log").read_text()

    def run(self, job: Object) -> None:
        name = job["metadata"]["name"]
        while name not in self.gone:
            log = self.folder / f"pod-{len(self.processes)}.log"
            pod = self.cluster.run_pod(name)
            self.cluster.set_log(pod, log)
            process = run_container(job, self.env, log)
            self.processes.append(process)
            self.begun.release()
            code = process.wait()
            if name in self.gone:
                return
            if code == 0:
                self.cluster.succeed(name)
                return
            reason, code = ("OOMKilled", 128 - code) if code < 0 else ("Error", code)
            ended = self.cluster.fail_pod(name, reason=reason, exit_code=code)
            if any(found["type"] == "Failed" for found in ended["status"].get("conditions", ())):
                return

    def delete(self, job: Object) -> None:
        self.gone.add(job["metadata"]["name"])
        self.end()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
