"""Banks of shared memory: lanes that are served together meet in none, by the addresses that kernels compute."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.plugins.cuda.on_host import HostBuild, missing

LANES, BANKS = 32, 32
ROW_BYTES, PIECE_BYTES = 64, 16


class Launch(NamedTuple):
    numbers: tuple[int, int, int]
    source: str = "addresses"
    entry: str = "addresses"
    grid: tuple[int, int, int] = (1, 1, 1)
    block: int = LANES
    shared_bytes: int = 128

    def arguments(self, pointers: Sequence[int]) -> bytes:
        return struct.pack("<Q4i", *pointers, *self.numbers, 0)


Addresses = Callable[[int, int, int], "list[int]"]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Addresses:
    """Of each lane, by what is asked, the first row, and the step."""
    absent = missing()
    if absent and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(absent)}; see .ci/debian-packages.txt")
    kernels = HostBuild(tmp_path_factory.mktemp("banks")).kernels(Path(__file__).with_name("addresses.cu"), 80)
    return lambda *numbers: kernels.run(Launch(numbers), [], ((LANES,), np.uint32)).tolist()


def turns(addresses: Sequence[int], width: int) -> int:
    """How often memory is asked until all lanes are served, `width` bytes each, of 128 bytes a time: words of one
    bank come one after the other.
    """
    together = BANKS * 4 // width
    total = 0
    for start in range(0, len(addresses), together):
        words = {address // 4 + i for address in addresses[start : start + together] for i in range(width // 4)}
        total += max(Counter(word % BANKS for word in words).values())
    return total


def test_turns_are_counted_as_they_come() -> None:
    assert turns(range(0, 128, 4), 4) == 1
    assert turns(range(0, 512, 16), 16) == 4
    assert turns([0] * 32, 4) == 1, "the same word goes to all"
    assert turns(range(0, 32 * 128, 128), 4) == 32
    plain_rows = [row * ROW_BYTES for row in range(8)]
    assert turns(plain_rows, PIECE_BYTES) == 4, "pieces that do not change places meet"


@pytest.mark.parametrize("what", [0, 1], ids=["pixels", "filters"])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("first", range(0, 192, 16))
def test_matrices_are_read_in_four_turns(addresses: Addresses, what: int, step: int, first: int) -> None:
    found = addresses(what, first, step)
    assert turns(found, PIECE_BYTES) == 4, "512 bytes"
    rows = {address // ROW_BYTES for address in found}
    assert rows == set(range(first, first + 16))
    pieces = sorted(address // PIECE_BYTES for address in found)
    assert len(set(pieces)) == LANES, "each piece once"


def test_steps_of_a_row_are_all_of_its_pieces(addresses: Addresses) -> None:
    for what in (0, 1):
        both = [*addresses(what, 32, 0), *addresses(what, 32, 1)]
        assert sorted(both) == list(range(32 * ROW_BYTES, 48 * ROW_BYTES, PIECE_BYTES))


@pytest.mark.parametrize("first", range(0, 64, 8))
def test_copies_of_sixteen_bytes_are_written_in_four_turns(addresses: Addresses, first: int) -> None:
    assert turns(addresses(2, first, 0), PIECE_BYTES) == 4


@pytest.mark.parametrize("what", [3, 4, 5], ids=["128 pixels", "64 pixels", "16 pixels"])
@pytest.mark.parametrize("column", [0, 1, 9])
@pytest.mark.parametrize("first", [0, 8])
def test_floats_are_sorted_in_one_turn(addresses: Addresses, what: int, column: int, first: int) -> None:
    assert turns(addresses(what, first, column), 4) == 1
