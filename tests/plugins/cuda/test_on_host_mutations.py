"""Kernels that are made wrong on purpose, one line at a time: each is found, by a fault or by a wrong answer.

What is not found by these layers would not be found in a kernel that is written wrong.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from engines.plugins.ops import PoolAttributes, pack_bits
from engines.plugins.reference import binary_max_pool, binary_pack
from tests.plugins.cuda.on_host import CUDA, UNDEFINED, HostBuild, HostFault
from tests.plugins.cuda.on_host_layers import TACTICS, HostLayers
from tests.plugins.cuda.test_on_host import check
from tests.plugins.test_kernels import layer

# two tiles say as much as all of them and compile in less time: warps share pixels in one, filters in the other
TILES = ("64x32", "16x128")
RACE = "race at byte|in flight: no wait covers|shared memory: uninitialized"
BEYOND, APART = "out of bounds", "diverges"
TWICE, NEVER = "another thread wrote it", "no thread writes"
DIFFERS = "Mismatched elements"


class Mutation(NamedTuple):
    """`there` becomes `wrong` in a file, where it is found once."""

    name: str
    file: str
    there: str
    wrong: str
    said: str
    sm: int = 80
    tiles: tuple[str, ...] = TILES


def tap(name: str, wrong: str) -> Mutation:
    return Mutation(name, "tile.cuh", "& HIGH_BITS) == 0x00800080u", wrong, f"{DIFFERS}|{BEYOND}")


def convolution(name: str, there: str, wrong: str, said: str, sm: int = 80) -> Mutation:
    return Mutation(name, "convolve.cu", there, wrong, said, sm)


def epilogue(name: str, there: str, wrong: str, said: str, sm: int = 80) -> Mutation:
    return Mutation(name, "epilogue.cuh", there, wrong, said, sm)


CONVOLUTIONS = [
    convolution("no barrier behind the table of windows", "block.rectangles);\n    ptx::barrier();",
                "block.rectangles);", RACE),
    convolution("no barrier in the loop", "ptx::barrier();                        // and all", "// and all", RACE),
    convolution("no wait in the loop", "ptx::wait_groups<Tile::stages - 2>();", "", RACE),
    convolution("a wait that covers too little", "Tile::stages - 2>();", "Tile::stages - 1>();", RACE),
    convolution("no barrier before floats are sorted", "ptx::barrier();  // the stages", "// the stages", RACE),
    convolution("a stage that is still read is written", "load(write, number", "load(read, number", RACE),
    convolution("no commit in the loop", "+ Tile::stages - 1);\n        ptx::commit();", "+ Tile::stages - 1);", RACE),
    convolution("a stage is read twice", "read + 1 == Tile::stages ? 0 : read + 1", "read", f"{RACE}|{DIFFERS}"),
    convolution("windows are written where they are not read", "tile::swizzled(row, part / tile::PIECE_WORDS)",
                "part / tile::PIECE_WORDS", DIFFERS),
    convolution("filters are written where they are not read", "tile::swizzled(row, part) *", "part *", DIFFERS),
    Mutation("matrices of pixels change places", "tile.cuh", "step * 2 + matrix / 2)",
             "step * 2 + matrix % 2)", DIFFERS),
    Mutation("matrices of filters change places", "tile.cuh", "step * 2 + matrix % 2)",
             "step * 2 + matrix / 2)", DIFFERS),
    tap("rows above the image", "& 0x80808000u) == 0x00800000u"),
    tap("rows below the image", "& 0x80800080u) == 0x00800080u"),
    tap("columns left of the image", "& 0x80008080u) == 0x00000080u"),
    tap("columns right of the image", "& 0x00808080u) == 0x00800080u"),
    Mutation("windows of the first image for all", "tile.cuh", "row - static_cast<int>(first_pixel) / own.places", "0",
             f"{DIFFERS}|{BEYOND}"),
    Mutation("images of the batch counted twice", "tile.cuh", "row - static_cast<int>(first_pixel) / own.places", "row",
             f"{DIFFERS}|{BEYOND}"),
    convolution("no zeros outside of the image", "+ further : 0), is_there);", "+ further : 0), true);", DIFFERS),
    convolution("filters that are not there", "first_filter + row < own.group_filters &&", "", BEYOND),
    convolution("words behind a filter's row", " && word < own.row_words;", ";", BEYOND),
    convolution("a dilation that is forgotten", "kx * own.dilation_width", "kx",
                f"{DIFFERS}|{BEYOND}"),
    convolution("the first group's channels for all", " + ptx::block_z() * own.group_words", "", DIFFERS),
    convolution("a step too few", "+ step < own.row_words", "+ step + 1 < own.row_words", DIFFERS),
    convolution("set bits are not counted", "if constexpr (ptx::is_and) ptx::mma", "if (false) ptx::mma", DIFFERS, 90),
    Mutation("a tap too many is inside", "tile.cuh", "(-first + dilation - 1)", "(-first)", f"{DIFFERS}|{BEYOND}"),
    Mutation("a tap too few at the other side", "tile.cuh", "(size - first + dilation - 1)", "(size - first)", DIFFERS),
    Mutation("pixels behind the last have taps", "tile.cuh", "if (first_pixel + i < own.pixels) {", "{", BEYOND),
    Mutation("a pad that is forgotten", "tile.cuh", "own.stride_width - own.pad_left", "own.stride_width", DIFFERS),
    epilogue("nothing is taken back at a border", "if (own.has_zero_pads) take_back", "if (false) take_back", DIFFERS),
    epilogue("pads of one are taken back", "if (own.has_zero_pads) take_back", "take_back", DIFFERS),
    epilogue("no barrier between sorting and storing", "sorted, first);\n        ptx::barrier();", "sorted, first);",
             RACE),
    epilogue("no barrier before more floats are sorted", "if (first != 0) ptx::barrier();", "", RACE)._replace(
        tiles=("128x128",)
    ),
    epilogue("the first filters for all", "sort_floats<Tile>(own, products, sorted, first)",
             "sort_floats<Tile>(own, products, sorted, 0)", f"{DIFFERS}|{RACE}")._replace(tiles=("128x128",)),
    epilogue("rows of floats that are not whole pieces", "(width() + 4)", "(width() + 3)", "misaligned"),
    epilogue("pixels behind the last", "if (first_pixel + column >= own.pixels) return;", "", BEYOND),
    epilogue("products behind the last", "row < Tile::pixels && first_pixel + row < own.pixels",
             "row < Tile::pixels", BEYOND),
    epilogue("filters behind the last", "row < Tile::sorted_filters && first_filter + row < own.group_filters",
             "row < Tile::sorted_filters", f"{BEYOND}|{RACE}"),
    epilogue("wide stores where rows are not of whole pieces", "!= 0 ? 0 : log_wide", "!= 0 ? log_wide : log_wide",
             f"misaligned|{BEYOND}|{DIFFERS}|{RACE}"),
    epilogue("bits behind the last filter", "flips) & mask", "flips) & (mask | ~0u)", DIFFERS),
    epilogue("bits of half of the lanes", "found[i] |= ptx::shuffle_xor(found[i], 2);", "", DIFFERS),
    epilogue("a threshold that counts itself", "+ c] < threshold", "+ c] <= threshold", DIFFERS),
    epilogue("bits that four lanes write", "if (lane_column == i % 4 * 2 && pixel", "if (pixel", TWICE),
    epilogue("bits that no lane writes", "lane_column == i % 4 * 2", "lane_column == (i + 3) % 5 * 2", NEVER),
    epilogue("bits of pixels behind the last", "&& pixel < own.pixels && left > 0)", "&& left > 0)", BEYOND),
    epilogue("a slope at the wrong side", "v > shift ? above", "v < shift ? above", DIFFERS),
    epilogue("an offset that is forgotten", "slope), offset);", "slope), 0);", DIFFERS),
    epilogue("a half is taken for a float", "own.out_type == tile::FP32 ? 2 : 3", "own.out_type == tile::FP32 ? 2 : 2",
             f"{DIFFERS}|misaligned|{BEYOND}"),
    epilogue("{0, 1} is -1 and 1", "scale = (ptx::is_and ? 4 : -2) >> own.is_low_zero", "scale = ptx::is_and ? 4 : -2",
             DIFFERS, 90),
]  # fmt: skip

PACKS = [
    Mutation("lanes that do not shuffle", "pack.cu", "if (!is_there || channel", "if (channel", BEYOND),
    Mutation("lanes leave before a shuffle", "pack.cu", "const int word = ptx::block_y(), first",
             "if (!is_there) return;\n    const int word = ptx::block_y(), first", APART),
    Mutation("half of the channels", "pack.cu", "packed[k] |= ptx::shuffle_xor(packed[k], depth);", "", DIFFERS),
    Mutation("channels that are not there", "pack.cu", "|| channel >= own.channels) continue", ") continue", BEYOND),
    Mutation("words that four lanes write", "pack.cu", " && k % QUARTERS == quarter)", ")", TWICE),
    Mutation("NaN is positive", "pack.cu", ": !(value >= threshold)", ": value < threshold", DIFFERS),
    Mutation("words behind the last", "pack.cu", " && first + lane < own.words)", ")", f"{BEYOND}|{DIFFERS}"),
]  # fmt: skip

POOLS = [
    Mutation("a row too many", "pool.cu", "y >= own.height", "y > own.height", f"{DIFFERS}|{BEYOND}"),
    Mutation("a column too many", "pool.cu", "x < 0 ||", "x < -1 ||", f"{DIFFERS}|{BEYOND}"),
    Mutation("places behind the last", "pool.cu", "if (out_y >= own.out_height) return;", "", BEYOND),
    Mutation("pads that are negative", "pool.cu", "all{{~0u, ~0u, ~0u, ~0u}}", "all{{~0u, ~0u, 0u, ~0u}}", DIFFERS),
]


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A folder of sources with the mutation in them."""
    for path in CUDA.glob("*.cu*"):
        shutil.copy(path, folder)
    text = (folder / mutation.file).read_text()
    assert text.count(mutation.there) == 1, f"{mutation.there!r} is {text.count(mutation.there)} times there"
    (folder / mutation.file).write_text(text.replace(mutation.there, mutation.wrong))
    kept = "|".join(mutation.tiles)
    all_tiles = (folder / "convolve.cu").read_text()
    (folder / "convolve.cu").write_text(re.sub(rf"^ENTRIES\((?!{kept}).*\n", "", all_tiles, flags=re.MULTILINE))
    return folder


def run_convolutions(layers: HostLayers, tiles: tuple[str, ...] = TILES) -> None:
    """Several stages and rows of words off a stage, every border, groups; each of the load widths; products."""
    keys = {"pads": (1, 2, 1, 1), "strides": (2, 1), "dilations": (1, 2)}
    for given in (
        layer(40, 100, size=(8, 7), rows=1, low=0, pad_value=0, **keys),
        layer(256, 33, size=(7, 8), rows=2, pad_value=1, **keys),
        layer(192, 96, size=(7, 8), group=3, rows=1, **keys),
        layer(300, 36, size=(1, 1), kernel=(1, 1), rows=18),
    ):
        check(layers, *given, tactics=[tactic for tactic in TACTICS if tactic.name in tiles])


def run_packs(layers: HostLayers, _: tuple[str, ...] = ()) -> None:
    rng = np.random.default_rng(0)
    for count, places in ((40, (3, 5)), (33, (6, 8)), (70, ())):
        x = rng.integers(-2, 3, (2, count, *places)).astype(np.float32)
        x.ravel()[0] = np.nan
        thresholds = rng.integers(-1, 2, count).astype(np.float32)
        np.testing.assert_array_equal(layers.pack(x, thresholds), binary_pack(x, thresholds))


def run_pools(layers: HostLayers, _: tuple[str, ...] = ()) -> None:
    for channels in (40, 128):
        bits = pack_bits(np.random.default_rng(0).random((2, 7, 6, channels)) < 0.9)
        for pads in ((0, 0, 0, 0), (1, 1, 1, 1)):
            own = PoolAttributes(kernel_shape=(3, 2), pads=pads)
            np.testing.assert_array_equal(layers.max_pool(bits, own), binary_max_pool(bits, own))


Run = Callable[[HostLayers, tuple[str, ...]], None]
RUNS: list[tuple[Run, list[Mutation]]] = [
    (run_convolutions, CONVOLUTIONS), (run_packs, PACKS), (run_pools, POOLS),
]  # fmt: skip
ALL = [pytest.param(run, mutation, id=mutation.name) for run, mutations in RUNS for mutation in mutations]


@pytest.mark.parametrize(("run", "mutation"), ALL)
def test_what_is_wrong_is_found(build: HostBuild, tmp_path: Path, run: Run, mutation: Mutation) -> None:
    layers = HostLayers(build, mutation.sm, sources=mutated(mutation, tmp_path))
    with pytest.raises((HostFault, AssertionError), match=mutation.said):
        run(layers, mutation.tiles)


@pytest.mark.parametrize("flags", [(), UNDEFINED], ids=["plain", "undefined"])
@pytest.mark.parametrize("sm", [80, 90])
def test_what_is_right_is_not(build: HostBuild, sm: int, flags: tuple[str, ...]) -> None:
    layers = HostLayers(build, sm, flags=flags)
    for run, _ in RUNS:
        run(layers, (*TILES, "128x128"))
