"""Plans for GPUs at a server's start: what does not fit is built again from its source, while the CPU answers."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines.handover import MANIFEST_FILE
from engines.manifest import Manifest, decode, encode
from engines.signature import KEY_FILE, SIGNATURE_FILE, sign
from engines.spec import Spec, encode_spec
from tests.support.onnx_models import linear
from tests.support.servers import Server, running, until

PLAN = "tensorrt-rtx.plan"
VERSION = "1.7.1.116"
X = {"x": ("FP32", np.ones((2, 16)))}
NVML = """
    def nvmlInit(): pass
    def nvmlShutdown(): pass
    def nvmlSystemGetDriverVersion(): return "580.1"
    def nvmlDeviceGetCount(): return 1
    def nvmlDeviceGetHandleByIndex(index): return index
    def nvmlDeviceGetCudaComputeCapability(handle): return (8, 9)
    def nvmlDeviceGetName(handle): return "planted"
"""
"""A GPU of compute capability 8.9, as NVML's own module would show it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model, compiled by a server for SM86 too."""
    repository = tmp_path_factory.mktemp("made") / "repository"
    folder = repository / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(linear().SerializeToString())
    spec = Spec(targets=("openvino", "tensorrt-rtx"), gpus=("sm86",), precision="fp32")
    (folder / "spec.json").write_bytes(encode_spec(spec))
    with running(repository) as server:
        server.wait_ready("m")
        assert reason(server) == ""
    return repository


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Path:
    """The same, for one test. Nothing of the plan depends on where it lies."""
    copy = tmp_path / "repository"
    shutil.copytree(made, copy, copy_function=shutil.copy2)
    return copy


def plan_folder(repository: Path) -> Path:
    (found,) = [path.parent for path in (repository / ".cache").glob(f"[!.]*/{MANIFEST_FILE}")]
    return found


def manifest_of(repository: Path) -> Manifest:
    return decode((plan_folder(repository) / MANIFEST_FILE).read_bytes())


def reason(server: Server) -> str:
    return server.index()["m", "1"].get("reason", "")


def flip(repository: Path) -> None:
    file = plan_folder(repository) / PLAN
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def unsign(repository: Path) -> None:
    (plan_folder(repository) / SIGNATURE_FILE).write_bytes(b"0" * 64)


def of_another_version(repository: Path) -> None:
    """As this installation has signed it, before its library was replaced."""
    folder, found = plan_folder(repository), manifest_of(repository)
    data = encode(msgspec.structs.replace(found, plans=(msgspec.structs.replace(found.plans[0], version="1.6.0.1"),)))
    (folder / MANIFEST_FILE).write_bytes(data)
    (folder / SIGNATURE_FILE).write_bytes(sign(data, (repository / ".cache" / KEY_FILE).read_bytes().strip()))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flip, "its bytes are not those that were signed"),
    "a wrong signature": (unsign, "it does not bear this installation's signature"),
    "another version": (of_another_version, f"it was built by tensorrt-rtx 1.6.0.1, and {VERSION} is installed"),
}


def test_a_plan_that_fits_is_kept_as_it_is(repository: Path) -> None:
    before = (plan_folder(repository) / PLAN).stat().st_mtime_ns
    with running(repository) as server:
        server.wait_ready("m")
        assert reason(server) == ""
    assert (plan_folder(repository) / PLAN).stat().st_mtime_ns == before
    assert manifest_of(repository).plans[0].sms == (86,)


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_trusted_is_built_again_while_the_cpu_answers(repository: Path, name: str) -> None:
    spoil, said = SPOILT[name]
    spoil(repository)
    spoilt = (plan_folder(repository) / SIGNATURE_FILE).read_bytes()
    with running(repository) as server:
        until(lambda: server.state("m") == "READY", "ready")
        assert f"its plan for tensorrt-rtx is not used: {said}; it is being built again, and the CPU" in reason(server)
        answer = server.infer("m", X)
        assert answer.status_code == 200, "the CPU answers, whatever its plan for GPUs is"
        until(lambda: not reason(server), "the plan built again", timeout_s=60)
        assert server.infer("m", X).json() == answer.json()
    plan = manifest_of(repository).plans[0]
    assert (plan.version, plan.sms) == (VERSION, (86,))
    assert (plan_folder(repository) / SIGNATURE_FILE).read_bytes() != spoilt
    with running(repository) as server:
        server.wait_ready("m")
        assert reason(server) == "", "what was built again is trusted at the next start"


def test_another_key_trusts_nothing_of_before(repository: Path) -> None:
    with running(repository, env={"BITSERVE_PLAN_KEY": "a key that is long enough"}) as server:
        until(lambda: server.state("m") == "READY", "ready")
        assert "it does not bear this installation's signature" in reason(server)
        until(lambda: not reason(server), "the plan built again", timeout_s=60)


def test_a_plan_for_other_gpus_is_built_for_those_that_are_here(repository: Path, tmp_path: Path) -> None:
    """The GPU is planted: what is asked is what is built for it, not whether it runs."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "pynvml.py").write_text(textwrap.dedent(NVML))
    with running(repository, env={"PYTHONPATH": str(planted)}) as server:
        until(lambda: server.state("m") == "READY", "ready")
        assert "it was built for SM86, and here is SM89" in reason(server)
        # nothing can run it: the GPU is none
        until(lambda: reason(server).startswith("the CPU answers: no CUDA"), "the plan built again", timeout_s=60)
    assert manifest_of(repository).plans[0].sms == (89,)


def test_a_library_that_is_gone_leaves_the_plan_alone(repository: Path, tmp_path: Path) -> None:
    """Another replica may have it; here it is said, and nothing is built."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(
        textwrap.dedent("""
        from importlib import metadata
        found = metadata.version
        def version(name):
            if name.startswith("tensorrt"):
                raise metadata.PackageNotFoundError(name)
            return found(name)
        metadata.version = version
        """)
    )
    before = (plan_folder(repository) / PLAN).stat().st_mtime_ns
    with running(repository, env={"PYTHONPATH": str(planted)}) as server:
        server.wait_ready("m")
        assert reason(server) == "its plan for tensorrt-rtx is not used: tensorrt-rtx is not installed here"
        assert server.infer("m", X).status_code == 200
    assert (plan_folder(repository) / PLAN).stat().st_mtime_ns == before


def test_where_it_cannot_be_built_again_the_reason_is_said_and_the_cpu_serves(repository: Path, tmp_path: Path) -> None:
    """The memory that a compile may have is too little for any."""
    unsign(repository)
    with running(repository, "--build-memory-bytes", str(2**20)) as server:
        until(lambda: "building it again failed" in reason(server), "the failure said", timeout_s=60)
        assert "of memory" in reason(server)
        assert server.state("m") == "READY"
        assert server.infer("m", X).status_code == 200


def test_where_there_is_a_gpu_a_plan_for_it_is_built_unasked(tmp_path: Path) -> None:
    """Unless it shall not; and a spec that says what is built for is heeded."""
    planted, repository = tmp_path / "planted", tmp_path / "repository"
    planted.mkdir()
    (planted / "pynvml.py").write_text(textwrap.dedent(NVML))
    folder = repository / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(linear().SerializeToString())
    for flag, sms in (("--build-for-gpus", [(89,)]), ("--no-build-for-gpus", [])):
        with running(repository, flag, env={"PYTHONPATH": str(planted)}) as server:
            server.wait_ready("m")
            assert server.infer("m", X).status_code == 200
            assert reason(server)[:24] == ("the CPU answers: no CUDA" if sms else "")
        assert [plan.sms for plan in manifest_of(repository).plans] == sms
        if sms:
            shutil.rmtree(repository / ".cache")
    with running(repository, env={"PYTHONPATH": str(planted)}) as server:
        server.wait_ready("m")
        assert "there is none yet for the GPU that is here; it is being built again, and the CPU" in reason(server)
        assert server.infer("m", X).status_code == 200
        until(lambda: reason(server).startswith("the CPU answers: no CUDA"), "the plan built", timeout_s=60)
    assert [plan.sms for plan in manifest_of(repository).plans] == [(89,)]
    both = Spec(targets=("openvino", "tensorrt-rtx"), gpus=("sm86", "sm89"))
    for spec, sms in ((both, [(86, 89)]), (Spec(targets=("openvino",)), [])):
        shutil.rmtree(repository / ".cache")
        (folder / "spec.json").write_bytes(encode_spec(spec))
        with running(repository, env={"PYTHONPATH": str(planted)}) as server:
            server.wait_ready("m")
            assert bool(reason(server)) == bool(sms)
        assert [plan.sms for plan in manifest_of(repository).plans] == sms
