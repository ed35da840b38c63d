"""Schemathesis on the OpenAPI page: no 5xx, and every answer is one that the page describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.wire import assert_serves
from tests.support.servers import TOKEN, Server

_CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method",
]  # fmt: skip
_KNOWN = '[parameters]\n"path.model" = "m"\n"path.version" = "1"\n'


@pytest.mark.parametrize("known", [False, True], ids=["any names", "a model that is there"])
def test_schemathesis(server: Server, tmp_path: Path, known):
    """With names of its own making it meets 404 most of the time; so again with those of a model that is there."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(_KNOWN if known else "")
    # what would take the model away, or hide the errors that are looked for at the end
    kept = ["--exclude-path-regex", "/load$|/unload$|/logging$"] if known else []
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{server.url}/openapi.json",
        "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--generation-deterministic",
        "--request-timeout", "10", "--header", f"Authorization: Bearer {TOKEN}",
        "--continue-on-failure", "--warnings", "off", "--checks", ",".join(_CHECKS), *kept,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert_serves(server)
    bad = [line for line in server.log if "Traceback" in line or '"level": "ERROR"' in line]
    assert not bad, bad[:3]
