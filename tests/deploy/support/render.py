"""Manifests as Kubernetes would get them: from kustomize folders and from the chart. Objects are plain dictionaries."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.support.render_tools import ROOT, helm, kubectl, run

__all__ = [
    "CHART", "DEPLOY", "FLAVOURS", "KSERVE", "Object", "RenderError", "comparable", "helm_lint", "helm_template",
    "identity", "kustomize", "kustomize_with", "of_kind", "overlay", "pod_specs", "values_file",
]  # fmt: skip

Object = dict[str, Any]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "bitserve"
KSERVE = DEPLOY / "kserve"
FLAVOURS = ("cpu", "gpu", "s3", "keda", "jobs")
"""Each is a kustomize overlay, and a file of values of the chart."""
_RELEASE = "bitserve"


class RenderError(Exception):
    """A renderer refused; the message is what it said."""


def overlay(flavour: str) -> Path:
    """The folder of a kustomize overlay."""
    return DEPLOY / "kubernetes" / "overlays" / flavour


def values_file(flavour: str) -> Path:
    """The chart's values that give the same as the overlay."""
    return CHART / "ci" / f"{flavour}-values.yaml"


def kustomize(folder: Path) -> list[Object]:
    """The objects of a kustomize folder. Raises RenderError."""
    return _objects(run(kubectl(), "kustomize", folder))


def kustomize_with(*components: Path, flavour: str, namespace: str) -> list[Object]:
    """The objects of an overlay as a user would extend it: in a namespace, with optional components."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        base, *parts = (os.path.relpath(path, folder) for path in (overlay(flavour), *components))
        whole = {"namespace": namespace, "resources": [base], "components": parts}  # kustomize takes no absolute paths
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole), "utf-8")
        return kustomize(folder)


def helm_template(*values: Path, sets: tuple[str, ...] = (), chart: Path = CHART) -> list[Object]:
    """The objects of the chart under files of values and `--set` words. Raises RenderError."""
    return _objects(run(helm(), "template", _RELEASE, chart, *_flags(values, sets)))


def helm_lint(*values: Path, chart: Path = CHART) -> None:
    """Raise RenderError where helm finds fault, warnings included."""
    _objects(run(helm(), "lint", "--strict", "--quiet", chart, *_flags(values)))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [one for one in objects if one["kind"] in kinds]


def identity(one: Object) -> tuple[str, str]:
    """Kind and name."""
    return one["kind"], one["metadata"]["name"]


def pod_specs(objects: list[Object]) -> list[tuple[str, Object]]:
    """Whatever describes a pod: a name for messages, and the spec."""
    found = []
    for one in objects:
        where = "/".join(identity(one))
        if one["kind"] in {"Deployment", "Job", "StatefulSet", "DaemonSet"}:
            found.append((where, one["spec"]["template"]["spec"]))
        elif one["kind"] in {"Pod", "ServingRuntime"}:
            found.append((where, one["spec"]))
    return found


def comparable(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """Objects by identity without what tools write about themselves: labels, annotations, and the namespace, which a
    chart's are given when they are installed.

    Selectors stay: they decide which pods are meant. So does the namespace of a subject.
    """
    found = {}
    for one in copy.deepcopy(objects):
        templates = [one, one["spec"]["template"]] if "template" in one.get("spec", {}) else [one]
        for about in templates:
            for key in ("labels", "annotations", "namespace"):
                about.get("metadata", {}).pop(key, None)
            if not about.get("metadata", True):
                del about["metadata"]
        found[identity(one)] = one
    return found


def _flags(values: tuple[Path, ...], sets: tuple[str, ...] = ()) -> list[str]:
    return [*(f"--values={path}" for path in values), *(f"--set={word}" for word in sets)]


def _objects(done: Any) -> list[Object]:
    if done.returncode:
        raise RenderError(f"{done.stdout}{done.stderr}".strip())
    return [one for one in yaml.safe_load_all(done.stdout) if isinstance(one, dict)]
