"""Shapes change many thousand times, and nothing is left of each: no module, no memory of device or process, no object.

On a GPU every change is followed by a run, and each 1,000th on the host. A GPU has not run this yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from engines.plugins import reference
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.gpu.driver import Kernels
from engines.plugins.ops import GemmAttributes, PoolAttributes
from tests.gpu.conftest import XOR
from tests.gpu.device import Gpu
from tests.gpu.growth import grown, held
from tests.gpu.leaking import LaunchesAreKept, MemoryOutsideOfPython, ModulesAreLoadedAgain
from tests.gpu.machines import Machine
from tests.gpu.plugins import Bound, Plugins, described
from tests.plugins.test_kernels import layer
from tests.plugins.test_operators import random_bits
from tests.targets.gpu.on_host import Host

CHANGES, FIRST = 30_000, 600
"""FIRST come before anything is counted: what is made once is then there."""
SIDES = range(2, 42)
ROWS, HEIGHT, WIDTH = 4, SIDES[-1], SIDES[-1]
"""Of the largest images."""
CHANNELS, FILTERS = 40, 33


class Case(NamedTuple):
    """An operator on `first`, of the largest images, and `others`; of smaller images, the first input is smaller."""

    operator: str
    attributes: dict[str, Any]
    first: np.ndarray
    others: list[np.ndarray]
    made: type
    """Of what the output consists."""
    answer: Callable[[np.ndarray], np.ndarray]
    shapes: Callable[[int, int, int], tuple[tuple[int, ...], tuple[int, ...]]]
    """Of the first input and of the output, for so many rows, height and width."""


def cases() -> list[Case]:
    rng = np.random.default_rng(0)
    own, bits, weights, multiplier, bias = layer(
        CHANNELS, FILTERS, (HEIGHT, WIDTH), rows=ROWS, pads=(1, 1, 1, 1)
    )  # fmt: skip
    pool, product = PoolAttributes(kernel_shape=(2, 2)), GemmAttributes(channels=CHANNELS)
    floats = [multiplier, bias, rng.standard_normal((3, FILTERS)).astype(np.float32)]
    limits = [rng.integers(-9, 9, FILTERS).astype(np.int32), random_bits(FILTERS)]
    x, thresholds = rng.standard_normal((ROWS, CHANNELS, HEIGHT, WIDTH)).astype(np.float32), np.zeros(CHANNELS, "f4")
    flat, rows = random_bits(FILTERS, CHANNELS, seed=1), bits.reshape(-1, 2)
    laid_out, laid_flat = ([gpu_weights(w), gpu_sums(w, CHANNELS)] for w in (weights, flat[:, None, None]))
    of = {**own.values(), "kernel_shape": (3, 3)}
    return [
        Case("BinaryPack", {"strict": 0}, x, [thresholds], np.int32, lambda x: reference.binary_pack(x, thresholds),
             lambda n, h, w: ((n, CHANNELS, h, w), (n, h, w, 2))),
        Case("BinaryConv2d", {**of, "half": 0}, bits, [*laid_out, *floats],
             np.float32, lambda x: reference.binary_conv2d(x, weights, *floats, own),
             lambda n, h, w: ((n, h, w, 2), (n, FILTERS, h, w))),
        Case("BinaryThreshold2d", of, bits, [*laid_out, *limits],
             np.int32, lambda x: reference.binary_threshold2d(x, weights, *limits, own),
             lambda n, h, w: ((n, h, w, 2), (n, h, w, 2))),
        Case("BinaryMaxPool", pool.values(), bits, [], np.int32, lambda x: reference.binary_max_pool(x, pool),
             lambda n, h, w: ((n, h, w, 2), (n, h - 1, w - 1, 2))),
        Case("BinaryGemm", {**product.values(), "half": 0}, rows, [*laid_flat, *floats],
             np.float32, lambda x: reference.binary_gemm(x, flat, *floats, product),
             lambda n, h, w: ((n * h * w, 2), (n * h * w, FILTERS))),
        Case("BinaryThreshold", product.values(), rows, [*laid_flat, *limits],
             np.int32, lambda x: reference.binary_threshold(x, flat, *limits, product),
             lambda n, h, w: ((n * h * w, 2), (n * h * w, 2))),
    ]  # fmt: skip


class Changing:
    """One plugin, its tensors in memory for the largest images, whose shapes are set again and again."""

    def __init__(self, case: Case, bound: Bound, machine: Machine) -> None:
        self.case, self._bound, self._machine = case, bound, machine
        self._others = [described(array.shape, array.dtype) for array in case.others]
        self._given: list[Any] = []
        self._result: list[Any] = []

    def change(self, sizes: tuple[int, int, int]) -> None:
        given, result = self.case.shapes(*sizes)
        self._given = [described(given, self.case.first.dtype), *self._others]
        self._result = [described(result, self.case.made)]
        self._bound.plugin.on_shape_change(self._given, self._result)

    def enqueue(self) -> None:
        *inputs, output = self._bound.addresses
        self._bound.plugin.enqueue(self._given, self._result, inputs, [output], 0, self._machine.stream)

    def require_right(self, sizes: tuple[int, int, int], whole: np.ndarray) -> None:
        """What a run wrote at the beginning of the place for the largest images."""
        shape, _ = self.case.shapes(*sizes)
        expected = self.case.answer(self.case.first.ravel()[: np.prod(shape)].reshape(shape))
        self._machine.read(self._bound.addresses[-1], whole)
        np.testing.assert_array_equal(whole.ravel()[: expected.size], expected.ravel())


def sizes_of(change: int) -> tuple[int, int, int]:
    """Rows, height and width: each time others, as far as there are; operators take turns."""
    turn, sides = change // 6, len(SIDES)
    return 1 + turn % ROWS, SIDES[turn // ROWS % sides], SIDES[turn // (ROWS * sides) % sides]


def run_changes(plugins: Plugins, changes: int, *, run_each: int, is_looked_at: bool = True) -> list[str]:
    """What has grown; the last runs of all operators are looked at, too."""
    if isinstance(plugins.machine, Host):
        plugins.machine.driver.has_spare_memory = True
    with contextlib.ExitStack() as held_open:
        found = []
        for case in cases():
            whole = np.empty(case.shapes(ROWS, HEIGHT, WIDTH)[1], case.made)
            plugin = plugins.made(case.operator, case.attributes)
            bound = held_open.enter_context(plugins.bound(plugin, [case.first, *case.others], whole))
            found.append((Changing(case, bound, plugins.machine), whole))
        before = None
        for change in range(-FIRST, changes):
            if change == 0:
                before = held(plugins.machine)
            changing, _ = found[change % len(found)]
            changing.change(sizes_of(change + FIRST))
            if change % run_each == 0:
                changing.enqueue()
        assert before is not None
        after = held(plugins.machine)
        for i, (changing, whole) in enumerate(found if is_looked_at else []):
            changing.change(sizes_of(changes + i))
            changing.enqueue()
            changing.require_right(sizes_of(changes + i), whole)
        return grown(before, after, changes)


def test_shapes_change_and_nothing_is_left_of_it(machine: Machine) -> None:
    with Plugins(machine) as plugins:
        # 997: so that each operator has its turn, and runs while others have changed
        assert run_changes(plugins, CHANGES, run_each=1 if isinstance(machine, Gpu) else 997) == []
        assert sorted(name for name, _ in plugins.loaded) == ["convolve", "pack", "pool"]
    assert machine.modules == []
    assert plugins.refused == []


@pytest.mark.parametrize(
    ("kernels", "said"),
    [(LaunchesAreKept, "blocks"), (ModulesAreLoadedAgain, "modules"), (MemoryOutsideOfPython, "resident_bytes")],
)
def test_a_planted_leak_is_found(host: Callable[[int], Host], kernels: type[Kernels], said: str) -> None:
    with Plugins(host(XOR), kernels=kernels) as plugins:
        found = run_changes(plugins, CHANGES // 5, run_each=CHANGES)
    assert any(problem.startswith(f"{said}: ") for problem in found), found
