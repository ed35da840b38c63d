"""Where CI=true a skip is a failure, unless `allowed_skips.txt` gives a cause that no install can cure."""

from __future__ import annotations

import atexit
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.plugins import extension
from tests.support.servers import FRONT_ENDS, KNOWN_PLANS, ON_GPU

_ALLOWED = Path(__file__).parent / "allowed_skips.txt"


def _allowed() -> tuple[str, ...]:
    lines = [line.strip() for line in _ALLOWED.read_text().splitlines()]
    return tuple(line.split(": ")[0] for line in lines if line and not line.startswith("#"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--extension", help="the library of native kernels to test, instead of the installed one")


def pytest_configure(config: pytest.Config) -> None:
    """Before any module of tests or of engines has taken the function by its name."""
    if (ON_GPU or FRONT_ENDS > 1) and "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[KNOWN_PLANS] = tempfile.mkdtemp(prefix="plans-")  # each of the workers has it, too
        atexit.register(shutil.rmtree, os.environ[KNOWN_PLANS], ignore_errors=True)
    if "PYTEST_XDIST_WORKER" in os.environ:  # what is left among temporary files is looked for: each has its own
        os.environ["TMPDIR"] = tempfile.mkdtemp(prefix=f"{os.environ['PYTEST_XDIST_WORKER']}-")
        atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)
        tempfile.tempdir = None
    given = config.getoption("--extension")
    if given:
        extension.extension_path = lambda: Path(given).absolute()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a suite that is run once more cannot change is run where servers are on the CPU, without front ends."""
    unchanged = ["asks_no_engine"] * bool(ON_GPU) + ["asks_the_compiler"] * (FRONT_ENDS > 1)
    again = [item for item in items if any(map(item.get_closest_marker, unchanged))]
    config.hook.pytest_deselected(items=again)
    items[:] = [item for item in items if item not in set(again)]


def _is_of(node_id: str, entry: str) -> bool:
    return node_id.startswith(entry) or fnmatch.fnmatchcase(node_id, entry)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    strict = os.environ.get("CI") == "true" and not any(_is_of(item.nodeid, entry) for entry in _allowed())
    if strict and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true, and not in {_ALLOWED.name}: {call.excinfo and call.excinfo.value}"
    return report
