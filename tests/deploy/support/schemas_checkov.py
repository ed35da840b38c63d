"""Checkov on rendered manifests and other files, without a network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from tests.deploy.support.render import Object
from tests.deploy.support.render_tools import checkov, run

__all__ = ["SKIPPED", "checkov_findings", "file_findings"]

SKIPPED = {
    "CKV_K8S_15": "an image that was loaded into the nodes is in no registry: Always would never find it",
    "CKV_K8S_21": "the namespace is whichever the user names with kubectl or helm",
    "CKV_K8S_35": "the server reads its tokens from variables, as all its settings",
    "CKV_K8S_43": "the image is built by the user, so its digest is not known here",
}
"""Checks that are left out, and why."""


def checkov_findings(objects: Iterable[Object]) -> list[str]:
    """Failed checks of manifests. Raises ToolMissing."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.yaml"
        manifest.write_text(yaml.safe_dump_all(objects), "utf-8")
        return file_findings(manifest, "kubernetes")


def file_findings(path: Path, framework: str) -> list[str]:
    """Failed checks of a file of some kind, such as `dockerfile`. Raises ToolMissing."""
    done = run(
        checkov(), "--file", path, "--framework", framework, "--skip-download", "--compact", "--quiet",
        "--output", "json", "--skip-check", ",".join(SKIPPED),
    )  # fmt: skip
    try:
        report = json.loads(done.stdout)
        failed = report["results"]["failed_checks"]
    except (ValueError, KeyError, TypeError):
        return [f"checkov gave no report: {done.stderr.strip()[-500:]}"]
    found = [f"{one['resource']}: {one['check_id']} {one['check_name']}" for one in failed]
    return found if report["summary"]["passed"] or found else ["checkov looked at nothing"]
