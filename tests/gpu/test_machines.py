"""Machines keep what they promise: memory, captures, times. A GPU has not run this yet."""

from __future__ import annotations

import numpy as np
import pytest

from engines.hardware import gpus
from engines.plugins.ops import PoolAttributes
from engines.plugins.reference import binary_max_pool
from tests.gpu import machines
from tests.gpu.device import Gpu
from tests.gpu.machines import Machine, NoMachine, NoUnits, skip_or_fail
from tests.gpu.plugins import Plugins
from tests.plugins.test_operators import random_bits

OWN = PoolAttributes(kernel_shape=(2, 2))
BITS = random_bits(2, 4, 5, 64)
POOLED = binary_max_pool(BITS, OWN)


def test_memory_is_lent(machine: Machine) -> None:
    """Inputs are copied, what is not written shows, and another copy may be written and read meanwhile."""
    given, out, read = np.arange(12, dtype=np.int32).reshape(3, 4), np.zeros(5, np.float32), np.zeros((3, 4), np.int32)
    with machine.lend([given.T, given], [out]) as (across, whole, to):
        machine.read(whole, read)
        np.testing.assert_array_equal(read, given)
        machine.read(across, read)
        np.testing.assert_array_equal(read.ravel(), given.T.ravel())
        machine.write(whole, given + 1)
        machine.read(whole, read)
        np.testing.assert_array_equal(read, given + 1)
        assert len({across, whole, to}) == 3
    np.testing.assert_array_equal(given.ravel(), np.arange(12))
    assert set(out.tobytes()) == {0xCD}


def test_memory_is_given_back(machine: Machine) -> None:
    large, before = np.zeros(2**26, np.uint8), machine.used_bytes()
    with machine.lend([large], []):
        taken = machine.used_bytes() - before
    if isinstance(machine, Gpu):
        assert taken >= large.nbytes
        assert machine.used_bytes() - before < large.nbytes // 2
    else:
        assert taken == 0, "its memory is that of the process"


def test_what_is_captured_runs_when_it_is_replayed(machine: Machine) -> None:
    out = np.empty_like(POOLED)
    with Plugins(machine) as plugins:
        plugin = plugins.made("BinaryMaxPool", OWN.values())
        with plugins.bound(plugin, [BITS], out) as bound, machine.captured(bound.enqueue) as replay:
            machine.read(bound.addresses[-1], out)
            assert set(out.tobytes()) == {0xCD}
            assert machine.elapsed_us(replay, 2) > 0
            machine.read(bound.addresses[-1], out)
            np.testing.assert_array_equal(out, POOLED)
    assert machine.modules == []


def test_a_capture_that_fails_ends(machine: Machine) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), machine.captured(fail):
        pass
    with Plugins(machine) as plugins:
        plugin = plugins.made("BinaryMaxPool", OWN.values())
        found = plugins.run(plugin, [BITS], (POOLED.shape, np.int32))
    np.testing.assert_array_equal(found, POOLED)


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_where_there_is_no_gpu_it_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(NoMachine, match="no CUDA driver on this machine"):
        Gpu(tmp_path_factory.mktemp("none"))


def test_a_gpu_that_is_here_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match="no PyCUDA"):
        skip_or_fail(NoMachine("no PyCUDA"))
    monkeypatch.setattr(machines, "gpus", lambda: (object(),))
    with pytest.raises(pytest.fail.Exception, match="there is a GPU, and it is not used: no PyCUDA"):
        skip_or_fail(NoMachine("no PyCUDA"))
    with pytest.raises(pytest.skip.Exception, match="no bits"):
        skip_or_fail(NoUnits("no bits"))
