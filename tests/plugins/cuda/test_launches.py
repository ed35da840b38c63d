"""Launches: what kernels are given has the size and the order of what they read, and what they cannot do is refused."""

from __future__ import annotations

import re
import struct

import pytest

from engines.plugins.cuda.cubins import sources
from engines.plugins.cuda.launches import (
    POINTERS,
    TACTICS,
    Launch,
    convolve_launch,
    default_tactic,
    pack_launch,
    pool_launch,
)
from engines.plugins.ops import ConvAttributes, PoolAttributes

RESNET_LAYERS = [(56, 64), (28, 128), (14, 256), (7, 512)]
PADS = (1, 1, 1, 1)


def a_convolution(**changes: object) -> Launch:
    given = {
        "bits_shape": (2, 9, 7, 3), "filters": 40, "kernel": (3, 2), "own": ConvAttributes(channels=96), "out": "FP32",
        "activation_columns": 1, "tactic": TACTICS[1],
    }  # fmt: skip
    return convolve_launch(**(given | changes))  # type: ignore[arg-type]


def fields_of(file: str) -> tuple[list[str], list[str]]:
    """Names of the pointers and of the numbers that the struct Arguments of a source has."""
    body = re.search(r"struct Arguments \{(.*?)\};", sources()[file], re.DOTALL)
    assert body
    declared = [line.split("//")[0].strip() for line in body[1].splitlines()]
    pointers = [line.rstrip(";").split("*")[1].strip() for line in declared if "*" in line]
    numbers = [
        name
        for line in declared
        if "int32_t" in line and "*" not in line
        for name in line.split(" ", 1)[1].rstrip(";").split(", ")
    ]
    return pointers, numbers


@pytest.mark.parametrize(
    ("file", "launch"),
    [
        ("tile.cuh", a_convolution()),
        ("pack.cu", pack_launch((2, 3, 4), "FP32", strict=False)),
        ("pool.cu", pool_launch((2, 5, 5, 3), PoolAttributes(kernel_shape=(2, 2)))),
    ],
)
def test_arguments_have_the_size_of_the_struct(file: str, launch: Launch) -> None:
    pointers, numbers = fields_of(file)
    assert len(pointers) == POINTERS[launch.source]
    assert len(launch.numbers) == 4 * len(numbers)
    whole = launch.arguments(range(1, len(pointers) + 1))
    assert len(whole) == -(-(8 * len(pointers) + 4 * len(numbers)) // 8) * 8
    assert struct.unpack_from(f"<{len(pointers)}Q", whole) == tuple(range(1, len(pointers) + 1))


def numbers_of(launch: Launch, file: str) -> dict[str, int]:
    _, names = fields_of(file)
    return dict(zip(names, struct.unpack(f"<{len(names)}i", launch.numbers), strict=True))


def test_numbers_of_a_convolution_are_where_the_kernel_reads_them() -> None:
    own = ConvAttributes(channels=128, group=2, strides=(2, 3), dilations=(1, 2), pads=(1, 2, 3, 4), pad_value=0, low=0)
    launch = a_convolution(bits_shape=(2, 9, 8, 4), filters=64, own=own, out="FP16", activation_columns=64)
    assert numbers_of(launch, "tile.cuh") == {
        "height": 9, "width": 8, "words": 4, "group_words": 2, "filters": 64, "group_filters": 32,
        "kernel_height": 3, "kernel_width": 2, "stride_height": 2, "stride_width": 3, "dilation_height": 1,
        "dilation_width": 2, "pad_top": 1, "pad_left": 2, "out_width": 4, "places": 6 * 4, "pixels": 2 * 6 * 4,
        "out_words": 2, "row_words": 16, "terms": 6 * 64, "activation_columns": 64,
        "by_group_words": 2**29, "by_kernel_width": 2**29, "out_type": 1, "is_low_zero": 1, "has_zero_pads": 1,
    }  # fmt: skip
    assert launch.entry == "convolve_64x64_2"
    assert launch.grid == (1, 1, 2)


def test_numbers_of_packing_and_pooling_are_where_kernels_read_them() -> None:
    packed = pack_launch((70000, 40, 6), "FP16", strict=True)
    assert packed.entry == "pack_fp16_2"
    assert packed.grid == (1, 2, 65535)
    assert numbers_of(packed, "pack.cu") == {
        "rows": 70000, "row_step": 65535, "channels": 40, "places": 6, "words": 2, "strict": 1
    }  # fmt: skip
    pooled = pool_launch(
        (3, 9, 8, 4), PoolAttributes(kernel_shape=(3, 2), strides=(2, 1), dilations=(1, 3), pads=(2, 1, 0, 1))
    )
    assert pooled.entry == "pool_16"
    assert numbers_of(pooled, "pool.cu") == {
        "rows": 3, "row_step": 3, "height": 9, "width": 8, "words": 4, "out_height": 5, "out_width": 7,
        "kernel_height": 3, "kernel_width": 2, "stride_height": 2, "stride_width": 1, "dilation_height": 1,
        "dilation_width": 3, "pad_top": 2, "pad_left": 1,
    }  # fmt: skip


@pytest.mark.parametrize("launch", [a_convolution(), pack_launch((2, 3), "FP32", strict=False)])
def test_as_many_pointers_as_the_kernel_has(launch: Launch) -> None:
    with pytest.raises(ValueError, match="pointers"):
        launch.arguments([1])


@pytest.mark.parametrize(("words", "load"), [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 4), (16, 4)])
def test_loads_are_as_wide_as_the_words_of_a_tap_allow(words: int, load: int) -> None:
    launch = a_convolution(bits_shape=(1, 9, 9, words), own=ConvAttributes(channels=32 * words))
    assert launch.entry == f"convolve_64x64_{load}"


@pytest.mark.parametrize(
    ("shape", "datatype", "entry"),
    [
        ((1, 64, 56, 56), "FP32", "pack_fp32_16"), ((1, 64, 7, 7), "FP32", "pack_fp32_4"),
        ((1, 64, 1, 6), "FP32", "pack_fp32_8"), ((1, 64, 56, 56), "FP16", "pack_fp16_16"),
        ((1, 64, 14, 14), "FP16", "pack_fp16_8"), ((1, 64, 7, 7), "FP16", "pack_fp16_2"),
        ((8, 64), "FP32", "pack_rows_fp32"), ((8, 64, 1, 1), "FP16", "pack_rows_fp16"),
    ],
)  # fmt: skip
def test_packing_reads_as_wide_as_places_allow(shape: tuple[int, ...], datatype: str, entry: str) -> None:
    assert pack_launch(shape, datatype, strict=False).entry == entry  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits_shape": (2**30, 2, 2, 3), "kernel": (1, 1)}, "pixels: 4294967296"),
        ({"bits_shape": (0, 9, 7, 3)}, "rows: 0"),
        ({"bits_shape": (2, 2, 7, 3)}, "a window of 3 in 2 places"),
        ({"bits_shape": (2, 9, 7, 2)}, "2 words; 96 channels take 3"),
        ({"kernel": (1, 113), "bits_shape": (1, 1, 300, 3)}, "kernel width: 113"),
        ({"own": ConvAttributes(channels=2**20), "bits_shape": (1, 3, 2, 2**15)}, "words of a window"),
        ({"own": ConvAttributes(channels=96, group=3), "filters": 40}, "40 filters do not make 3 groups"),
        ({"own": ConvAttributes(channels=96, group=3), "filters": 48, "out": "BITS"}, "groups of 16 filters"),
        ({"activation_columns": 2}, "an activation of 2 columns"),
        ({"out": "INT8"}, "output 'INT8'"),
        ({"filters": 2**23}, "tiles of filters"),
        ({"bits_shape": (2, 2**14, 2**15, 3)}, "words of a block: 3221225472"),
        ({"own": ConvAttributes(channels=96, dilations=(2**29, 1), pads=(2**28, 0, 2**28, 0))}, "at most 268435456"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        a_convolution(**changes)


def test_packing_and_pooling_refuse_too() -> None:
    with pytest.raises(ValueError, match="places"):
        pack_launch((1, 1, 2**31), "FP32", strict=False)
    with pytest.raises(ValueError, match="parts of channels"):
        pack_launch((1, 2**22, 5), "FP32", strict=False)
    with pytest.raises(ValueError, match="rows: 0"):
        pool_launch((0, 2, 2, 1), PoolAttributes(kernel_shape=(1, 1)))


def test_division_by_multiplication_is_exact_for_all_that_is_let_in() -> None:
    for divisor in [*range(1, 300), 4095, 4096, 4097, 2**15 - 8]:
        own = ConvAttributes(channels=32 * divisor)
        launch = a_convolution(bits_shape=(1, 1, 1, divisor), kernel=(1, 1), own=own)
        by = numbers_of(launch, "tile.cuh")["by_group_words"]
        edges = {n for k in range(2**15 // divisor + 1) for n in (k * divisor - 1, k * divisor) if 0 <= n < 2**15}
        assert all(n * by >> 30 == n // divisor for n in edges)


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize(("side", "channels"), RESNET_LAYERS)
def test_tiles_of_a_grid_cover_all_pixels_and_filters(side: int, channels: int, batch: int) -> None:
    own, shape = ConvAttributes(channels=channels, pads=PADS), (batch, side, side, channels // 32)
    tactic = default_tactic(shape, channels, (3, 3), own)
    assert tactic in TACTICS
    grid = a_convolution(bits_shape=shape, filters=channels, kernel=(3, 3), own=own, tactic=tactic).grid
    assert grid[0] * tactic.pixels >= batch * side * side
    assert grid[1] * tactic.filters >= channels


def test_a_rule_takes_large_tiles_for_many_pixels_and_flat_ones_for_few() -> None:
    own = ConvAttributes(channels=64, pads=PADS)
    assert default_tactic((32, 56, 56, 2), 64, (3, 3), own).name == "128x64"
    assert default_tactic((16, 1, 1, 2), 2**14, (1, 1), ConvAttributes(channels=64)).name == "16x128"
    assert default_tactic((1, 7, 7, 2), 64, (3, 3), own).name in ("64x32", "32x64"), "more blocks for a small layer"


def test_tactics_have_numbers_of_their_own_from_one_on() -> None:
    numbers = [tactic.number for tactic in TACTICS]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) == 1
