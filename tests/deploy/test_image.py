"""What is in the image of the default target, built here on a base of Debian's own packages."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from typing import Any

import pytest

from tests.deploy.support.builds import BUILD
from tests.deploy.support.image import cpu_image, store, tool_venv
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(900)  # the first test waits for the image, and on first use for its base
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SBOM = "/usr/share/sbom/bitserve.cdx.json"


@pytest.fixture(scope="module")
def image() -> str:
    return cpu_image()


@pytest.fixture(scope="module")
def config(image: str) -> dict[str, Any]:
    return dict(store().inspect(image)["Config"])


def inside(image: str, *command: str) -> str:
    """What a command prints in a container that can do nothing."""
    flags = ("--rm", "--read-only", "--network", "none", "--cap-drop=ALL", "--security-opt", "no-new-privileges")
    return store().podman("run", *flags, "--entrypoint", command[0], image, *command[1:])


def python(image: str, program: str) -> Any:
    return json.loads(inside(image, "python", "-c", program))


def test_it_is_small(image: str) -> None:
    assert store().inspect(image)["Size"] < 900_000_000  # bytes, uncompressed, the base with them


def test_it_says_what_it_is(config: dict[str, Any]) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == PROJECT["name"]
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert {"description", "revision", "created"} <= set(labels)


def test_how_it_runs(config: dict[str, Any]) -> None:
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["tini", "-s", "--", "bitserve"], ["serve"])
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    variables = dict(pair.split("=", 1) for pair in config["Env"])
    assert variables["BITSERVE_HOST"] == "0.0.0.0"
    assert variables["BITSERVE_REPOSITORY"] == "/models"
    assert variables["BITSERVE_CACHE"] == "/cache/plans"
    assert variables["HOME"] == "/tmp"


def test_it_reaches_stores_and_the_api_of_a_cluster(image: str) -> None:
    program = "import json, obstore, kubernetes_asyncio.client as c; print(json.dumps(c.BatchV1Api.__name__))"
    assert python(image, program) == "BatchV1Api"


def test_it_runs_as_a_job_does(image: str) -> None:
    """A build that the store does not have is no success, and nothing but /tmp is written."""
    flags = ("--rm", "--read-only", "--network", "none", "--cap-drop=ALL", "--env", "BITSERVE_REPOSITORY=file:///tmp/s",
             "--env", "BITSERVE_MIRROR=/tmp/mirror", "--env", "BITSERVE_CACHE=/tmp/plans")  # fmt: skip
    code, said = store().podman_output("run", *flags, image, "build", BUILD)
    assert (code, f"the store has no build {BUILD}" in said) == (1, True), said


def test_its_user_is_nobody_in_particular(image: str) -> None:
    assert inside(image, "id").split() == [
        "uid=10001(bitserve)", "gid=10001(bitserve)", "groups=10001(bitserve)",
    ]  # fmt: skip
    assert inside(image, "stat", "--format", "%u:%g", "/models", "/cache").split() == ["10001:10001"] * 2
    program = "find /opt/bitserve ! -user 0 -o -perm /o+w ! -type l | head -3"
    assert inside(image, "sh", "-c", program) == "", "the server could change its own program"


def test_nothing_that_builds_is_left(image: str) -> None:
    found = inside(image, "sh", "-c", "command -v gcc g++ cc c++ ld make cmake ninja nvcc || true")
    assert set(found.split()) <= {"/opt/bitserve/bin/ninja"}, "nncf depends on the package of that one"
    names = python(
        image, "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    )
    assert not {"pip", "setuptools", "wheel", "cyclonedx-bom", "scikit-build-core"} & {name.lower() for name in names}
    leftovers = (
        "ls -d /root/.cache/* /build /opt/build /opt/wheels /opt/program /var/cache/apt/*.bin 2>/dev/null || true"
    )
    assert inside(image, "sh", "-c", leftovers) == ""


def test_no_tests_of_packages_and_bytecode_of_the_server(image: str) -> None:
    root = "/opt/bitserve/lib/python3*/site-packages"
    assert inside(image, "sh", "-c", f"find {root} -type d -name tests") == ""
    modules = (f"{root}/{name}/__pycache__/*.pyc" for name in ("app", "engines", "uvicorn", "openvino", "nncf"))
    assert len(inside(image, "sh", "-c", f"ls {' '.join(modules)}").split()) > 50


def test_bytecode_names_the_files_that_are_there(image: str) -> None:
    """A traceback shows lines of the program, not of where it was built."""
    assert python(image, "import app.main, json; print(json.dumps([app.main.serve.__code__.co_filename]))") == [
        inside(image, "python", "-c", "import app.main; print(app.main.__file__)").strip()
    ]


def test_the_kernels_are_native(image: str) -> None:
    program = (
        "import json; from engines.plugins.extension import extension_path; print(json.dumps(str(extension_path())))"
    )
    assert python(image, program).endswith(".plugin")


def test_every_library_loads(image: str) -> None:
    """Symbols were taken out of some; one that was broken by that would not load."""
    program = """
import ctypes, json, os, pathlib, sysconfig
import numpy, openvino, onnxruntime  # what others are linked with
root = pathlib.Path(sysconfig.get_path("purelib"))
modules, failed = [path for path in root.rglob("*.so") if path.parent.name != "libs"], {}
for path in modules:
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        failed[path.name] = str(error)
print(json.dumps([len(modules), failed]), flush=True)
os._exit(0)  # what was loaded without being asked to start would not end well
"""
    count, failed = python(image, program)
    assert count > 100
    assert failed == {}


def installed(image: str) -> dict[str, str]:
    """Versions by normalized name, as the container's Python sees them."""
    program = (
        "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    )
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in python(image, program)}


def listed(sbom: dict[str, Any]) -> dict[str, str]:
    """The same of an SBOM: its components, and what it is of."""
    components = [*sbom["components"], sbom["metadata"]["component"]]
    return {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in components}


def test_what_is_installed_is_what_is_locked(image: str) -> None:
    lock = (ROOT / "deploy/image/requirements-cpu.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, flags=re.M)) | {(PROJECT["name"], PROJECT["version"])}
    found = {(name, version) for name, version in installed(image).items()}
    assert found <= {(re.sub(r"[-_.]+", "-", name), version) for name, version in pinned}
    assert len(found) > 60


def invalid(text: str) -> str:
    """What the library of the standard's own makers says against an SBOM; nothing where it is valid."""
    program = (
        "import json, sys; from cyclonedx.schema import SchemaVersion; "
        "from cyclonedx.validation.json import JsonStrictValidator; "
        "text = sys.stdin.read(); version = SchemaVersion.from_version(json.loads(text)['specVersion']); "
        "print(JsonStrictValidator(version).validate_str(text) or '')"
    )
    bin_folder = tool_venv("cyclonedx", "cyclonedx-python-lib[json-validation]>=11,<12")
    done = subprocess.run(
        [bin_folder / "python", "-c", program], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_sbom_is_valid_and_lists_what_is_installed(image: str) -> None:
    text = inside(image, "cat", SBOM)
    assert invalid(text) == ""
    assert listed(json.loads(text)) == installed(image)


def test_an_sbom_that_is_not_valid_is_found(image: str) -> None:
    sbom = json.loads(inside(image, "cat", SBOM))
    del sbom["components"][0]["name"]
    assert "name" in invalid(json.dumps(sbom))
