"""How each kernel is launched for a shape: its entry, its grid, its shared memory and its numbers. Pure.

What a kernel cannot do raises ValueError. The order of the numbers is that of the structs named Arguments in *.cu.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple

from engines.plugins.cuda.layout import row_words_of
from engines.plugins.cuda.tactics import TACTICS, Tactic, cheapest
from engines.plugins.ops import ConvAttributes, PoolAttributes, words_of

__all__ = [
    "POINTERS", "TACTICS", "Launch", "OutType", "Tactic", "convolve_launch", "default_tactic", "pack_launch",
    "pool_launch",
]  # fmt: skip

OutType = Literal["FP32", "FP16", "BITS"]
OUT_TYPES: tuple[OutType, ...] = ("FP32", "FP16", "BITS")

POINTERS = {"pack": 3, "convolve": 9, "pool": 2}
THREADS = 128
"""Of a block of pack and pool."""
LONGEST = 2**31 - 1
GRID_YZ = 65535
_SIDE = 2**28
"""Of heights, widths, pads, strides and dilations: sums and products of a few fit 32 bits or are made in 64."""
_ROW_WORDS = 2**15
"""Words of a window are divided by multiplication, exact below this."""
_KERNEL = 112
"""Taps are numbered in seven bits, and so are up to 15 rows of them below, where a stage has words behind a window."""


class Launch(NamedTuple):
    """What the driver is told. `numbers` is the part of the kernel's one argument that follows its pointers."""

    source: str
    entry: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int
    numbers: bytes

    def arguments(self, pointers: Sequence[int]) -> bytes:
        """The whole argument, with these addresses; 0 where there is nothing."""
        if len(pointers) != POINTERS[self.source]:
            raise ValueError(f"{len(pointers)} pointers; {self.source} takes {POINTERS[self.source]}")
        whole = struct.pack(f"<{len(pointers)}Q", *pointers) + self.numbers
        return whole + bytes(-len(whole) % 8)


def pack_launch(shape: Sequence[int], datatype: Literal["FP32", "FP16"], *, strict: bool) -> Launch:
    """For x [rows, channels, places...]. Pointers: x, thresholds FP32 [channels], bits."""
    rows, channels, *sides = shape
    places, words = _product(sides), words_of(channels)
    _expect_some(rows=rows, channels=channels, places=places)
    _expect_at_most(LONGEST - THREADS, rows=rows, places=places, channels=channels)
    size = {"FP32": 4, "FP16": 2}[datatype]
    if places == 1:
        a_block = THREADS // 32 * 8
        entry, grid, step = f"pack_rows_{datatype.lower()}", (rows, -(-words // a_block), 1), rows
    else:
        wide = next(wide for wide in (16, 8, size) if places % (wide // size) == 0)
        step = min(rows, GRID_YZ)
        units = places // (wide // size)
        entry, grid = f"pack_{datatype.lower()}_{wide}", (-(-units // (THREADS // 4)), words, step)
    _expect_at_most(GRID_YZ, parts_of_channels=grid[1])
    numbers = struct.pack("<6i", rows, step, channels, places, words, strict)
    return Launch("pack", entry, grid, THREADS, 0, numbers)


def pool_launch(bits_shape: Sequence[int], own: PoolAttributes) -> Launch:
    """For bits [rows, height, width, words]. Pointers: bits, out."""
    rows, height, width, words = bits_shape
    out_height, out_width = _out_sizes(bits_shape, own.kernel_shape, own)
    wide = 4 if words % 4 == 0 else 1
    units, step = out_height * out_width * (words // wide), min(rows, GRID_YZ)
    _expect_some(rows=rows, words=words)
    _expect_at_most(LONGEST - THREADS, words_of_an_image=units, rows=rows)
    sides = (*own.kernel_shape, *own.strides, *own.dilations, *own.pads[:2])
    numbers = struct.pack("<15i", rows, step, height, width, words, out_height, out_width, *sides)
    return Launch("pool", f"pool_{4 * wide}", (-(-units // THREADS), 1, step), THREADS, 0, numbers)


def convolve_launch(
    bits_shape: Sequence[int], filters: int, kernel: tuple[int, int], own: ConvAttributes, out: OutType,
    activation_columns: int, tactic: Tactic,
) -> Launch:  # fmt: skip
    """For bits [rows, height, width, words]. Pointers: bits, weights, sums, multiplier, bias, activation, thresholds,
    flips, out; those that `out` does not use are 0. `activation_columns` counts for floats only.
    """
    _expect_convolution(bits_shape, filters, own, out, activation_columns)
    rows, height, width, words = bits_shape
    (high, wide), group_filters, depth = kernel, filters // own.group, own.channels // own.group
    out_height, out_width = _out_sizes(bits_shape, kernel, own)
    places, group_words = out_height * out_width, words_of(depth)
    pixels, row_words = rows * places, row_words_of(kernel, group_words)
    _expect_at_most(LONGEST, pixels=pixels)
    _expect_at_most(_KERNEL, kernel_height=high, kernel_width=wide)
    _expect_at_most(_ROW_WORDS - 1, words_of_a_window=row_words)
    grid = -(-pixels // tactic.pixels), -(-group_filters // tactic.filters), own.group
    _expect_at_most(GRID_YZ, tiles_of_filters=grid[1], groups=own.group)
    _expect_near(bits_shape, places, own, tactic)
    taps = high * wide
    numbers = struct.pack(
        "<21i2I3i", height, width, words, group_words, filters, group_filters, high, wide, *own.strides,
        *own.dilations, *own.pads[:2], out_width, places, pixels, words_of(filters), row_words,
        taps * depth, activation_columns, _reciprocal(group_words), _reciprocal(wide), OUT_TYPES.index(out),
        own.low == 0, own.pad_value == 0,
    )  # fmt: skip
    load_words = next(count for count in (4, 2, 1) if group_words % count == 0)
    return Launch(
        "convolve", f"convolve_{tactic.name}_{load_words}", grid, tactic.threads, tactic.shared_bytes, numbers
    )


def default_tactic(
    bits_shape: Sequence[int], filters: int, kernel: tuple[int, int], own: ConvAttributes, *, processors: int = 64
) -> Tactic:
    """The tile that a rule takes for a shape on so many multiprocessors, where none was timed."""
    out_height, out_width = _out_sizes(bits_shape, kernel, own)
    return cheapest(bits_shape[0] * out_height * out_width, filters, own.group, processors)


def _expect_convolution(
    bits_shape: Sequence[int], filters: int, own: ConvAttributes, out: OutType, activation_columns: int
) -> None:
    words = bits_shape[3]
    _expect_some(rows=bits_shape[0], filters=filters)
    _expect_at_most(_SIDE, words=words, filters=filters, channels=own.channels)
    if words != words_of(own.channels):
        raise ValueError(f"{words} words; {own.channels} channels take {words_of(own.channels)}")
    if filters % own.group:
        raise ValueError(f"{filters} filters do not make {own.group} groups")
    if out not in OUT_TYPES:
        raise ValueError(f"output {out!r}; expected one of {', '.join(OUT_TYPES)}")
    if out == "BITS" and own.group > 1 and filters // own.group % 32:
        raise ValueError(f"bits of groups of {filters // own.group} filters; expected a multiple of 32")
    if out != "BITS" and activation_columns not in (1, filters):
        raise ValueError(f"an activation of {activation_columns} columns; expected 1 or {filters}")


def _expect_near(bits_shape: Sequence[int], places: int, own: ConvAttributes, tactic: Tactic) -> None:
    """A block counts its words from the image of its first pixel on, in 32 bits."""
    _, height, width, words = bits_shape
    images = -(-(tactic.pixels - 1) // places) + 1
    _expect_at_most(LONGEST, words_of_a_block=images * height * width * words)


def _out_sizes(
    bits_shape: Sequence[int], kernel: tuple[int, int], own: ConvAttributes | PoolAttributes
) -> tuple[int, int]:
    top, left, bottom, right = own.pads
    _expect_some(kernel_height=kernel[0], kernel_width=kernel[1])
    _expect_at_most(
        _SIDE, sides_pads_strides_or_dilations=max(*bits_shape[1:3], *own.pads, *own.strides, *own.dilations)
    )
    found = []
    for size, before, after, taps, dilation, stride in zip(
        bits_shape[1:3], (top, left), (bottom, right), kernel, own.dilations, own.strides, strict=True
    ):
        reach = (taps - 1) * dilation + 1
        if size < 1 or size + before + after < reach:
            raise ValueError(f"a window of {reach} in {size} places with pads of {before} and {after}")
        found.append((size + before + after - reach) // stride + 1)
    return found[0], found[1]


def _reciprocal(divisor: int) -> int:
    """2**30 / divisor, rounded up: n * this >> 30 is n // divisor for both below 2**15."""
    return -(-(2**30) // divisor)


def _product(numbers: Sequence[int]) -> int:
    found = 1
    for number in numbers:
        found *= number
    return found


def _expect_some(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name.replace('_', ' ')}: {count}; expected at least 1")


def _expect_at_most(most: int, **counts: int) -> None:
    for name, count in counts.items():
        if count > most:
            raise ValueError(f"{name.replace('_', ' ')}: {count}; a kernel of the GPU takes at most {most}")
