"""Custom resources against types that others publish on npm: wrong types are found, unknown fields are not.

A second line where the definitions themselves are not at hand. KServe publishes none that is small.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tests.deploy.support.render import Object, identity
from tests.deploy.support.render_tools import ToolMissing, model_types, run

__all__ = ["PUBLISHED", "published_findings"]

PUBLISHED = {
    "keda.sh/v1alpha1": "@kubernetes-models/keda",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
}
_SCRIPT = """
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const found = [];
for (const { folder, object, where } of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    const file = pathToFileURL(`${process.cwd()}/node_modules/${folder}/${object.kind}.js`);
    const types = await import(file);
    new types[object.kind](object).validate();
  } catch (error) {
    found.push(`${where}: ${error.message}`);
  }
}
process.stdout.write(JSON.stringify(found));
"""


def published_findings(objects: Iterable[Object]) -> list[str]:
    """What the published types refuse. Kinds of other groups are passed over. Raises ToolMissing."""
    asked = [
        {
            "folder": f"{PUBLISHED[one['apiVersion']]}/{one['apiVersion']}",
            "object": one,
            "where": "/".join(identity(one)),
        }
        for one in objects
        if one["apiVersion"] in PUBLISHED
    ]
    done = run("node", "--input-type=module", "-e", _SCRIPT, stdin=json.dumps(asked), cwd=model_types())
    if done.returncode:
        raise ToolMissing(f"node, which runs the published types: apt-get install nodejs ({done.stderr.strip()})")
    found: list[str] = json.loads(done.stdout)
    return found
