"""TensorRT-RTX compiles its kernels on the GPU: while a model is loaded, and not again when it is loaded anew."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines.runtime.kept_kernels import KeptKernels
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums

MODEL = scaled_sums()
PLAN = msgspec.structs.replace(MODEL.plan, target="tensorrt-rtx")
BUCKETS = 4
KEY = b"a key"


def compiled_by(kept: KeptKernels | None, *, ask: bool = False) -> int:
    """How many kernels a session compiles until it has served."""
    gpu = SimulatedGpu()
    session = TensorRtSession(trt, {0: gpu}, MODEL.data, PLAN, MODEL.manifest, most_rows=8, instances=2, kept=kept)
    before = gpu.compiled
    for count in (1, 3, 8) if ask else ():
        x = np.random.default_rng(count).standard_normal((count, 4), dtype=np.float32)
        for slot in session.slots:
            slot.bind({"x": x.shape})["x"][:] = x
            assert slot.run() is None
            np.testing.assert_allclose(slot.outputs()["y"], planned(MODEL, x), rtol=0, atol=1e-5)
    assert gpu.compiled == before, "a request has waited for a compiler"
    assert gpu.replays == 0, "it makes its graphs by itself"
    session.close()
    assert (gpu.broken, gpu.held()) == ([], {})
    return gpu.compiled


def test_all_is_compiled_while_it_is_loaded_and_kept_for_the_next_time(tmp_path: Path) -> None:
    kept = KeptKernels(tmp_path / "some" / "where", KEY)
    assert compiled_by(kept, ask=True) == BUCKETS
    assert compiled_by(kept, ask=True) == 0
    assert compiled_by(None) == BUCKETS


@pytest.mark.parametrize("damage", ["another key", "a flipped bit", "cut", "empty", "a folder"])
def test_what_is_not_ours_is_not_read_and_made_anew(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "kernels"
    assert compiled_by(KeptKernels(file, KEY)) == BUCKETS
    content = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage != "another key":
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes({"a flipped bit": flipped, "cut": content[:-1], "empty": b""}[damage])
    kept = KeptKernels(file, b"another" if damage == "another key" else KEY)
    assert kept.read() == b""
    assert compiled_by(kept) == BUCKETS
    assert compiled_by(kept) == (BUCKETS if damage == "a folder" else 0)


def test_kernels_of_another_driver_are_refused_by_the_library_and_made_anew(tmp_path: Path) -> None:
    kept = KeptKernels(tmp_path / "kernels", KEY)
    kept.write(b"of something else")
    assert compiled_by(kept) == BUCKETS
    assert compiled_by(kept) == 0
