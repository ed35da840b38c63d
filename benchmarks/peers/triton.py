"""The real Triton 2.51, from the wheel of nvidia-pytriton: its Python backend runs OpenVINO, its batcher batches."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.peer import Peer
from benchmarks.peers.processes import answers, started
from benchmarks.peers.venvs import OPENVINO, made
from benchmarks.peers.wording import BINARY, JSON, Binary, Json
from engines.hardware import usable_threads
from tests.support.servers import free_port

__all__ = ["NAME", "REQUIREMENTS", "up"]

NAME = "Triton"
REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy<2.3", OPENVINO)
_HANDLERS = Path(__file__).parent / "handlers"
_CONFIG = """backend: "python"
max_batch_size: {rows}
input [ {{ name: "{served.input}", data_type: TYPE_FP32, dims: {row} }} ]
output [ {{ name: "{served.output}", data_type: TYPE_FP32, dims: [ {served.classes} ] }} ]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
dynamic_batching {{ }}
parameters {{ key: "threads" value: {{ string_value: "{threads}" }} }}
"""


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path) -> Iterator[Peer]:
    """One instance a model, without gRPC and metrics: less to do than as it comes."""
    python = made("triton", REQUIREMENTS)
    repository = folder / "repository"
    for served in models:
        _place(repository / served.name, served)
    wheel = Path(_printed(python, "import pytriton; print(pytriton.__path__[0])"))
    server = wheel / "tritonserver"
    port = free_port()
    command = [
        str(server / "bin" / "tritonserver"), "--model-repository", str(repository),
        "--backend-directory", str(_backends(server, folder)),
        "--http-address", "127.0.0.1", "--http-port", str(port), "--allow-grpc", "false", "--allow-metrics", "false",
    ]  # fmt: skip
    libraries = f"{wheel.parent / 'nvidia_pytriton.libs'}:{_printed(python, _LIBDIR)}"
    # its stub finds the packages by the first Python of PATH
    env = {"LD_LIBRARY_PATH": libraries, "PATH": f"{python.parent}:{os.environ.get('PATH', '')}"}
    base = f"http://127.0.0.1:{port}"
    with started(command, folder, lambda: answers(f"{base}/v2/health/ready"), env) as tree:
        yield Peer(NAME, base, tree, {BINARY: Binary(), JSON: Json()})


_LIBDIR = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"


def _printed(python: Path, program: str) -> str:
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def _place(model: Path, served: Served) -> None:
    (model / "1").mkdir(parents=True)
    config = _CONFIG.format(served=served, row=list(served.row), rows=MAX_BATCH, threads=usable_threads())
    (model / "config.pbtxt").write_text(config)
    (model / "1" / "model.onnx").write_bytes(served.model.SerializeToString())
    shutil.copy(_HANDLERS / "triton_model.py", model / "1" / "model.py")
    shutil.copy(_HANDLERS / "engine.py", model / "1")


def _backends(server: Path, folder: Path) -> Path:
    """The folder that the server wants, put together from where the wheel has its parts."""
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (backend / name).symlink_to(server / "backends" / "python" / name)
    stub = backend / "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"  # its environment is made by this Python
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    return backend.parent
