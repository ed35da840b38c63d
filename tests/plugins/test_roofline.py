"""The arithmetic of the bounds for GPUs, against cases worked out by hand; and that the stored files are of it."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import RESULTS
from benchmarks.roofline import BATCHES, LAYERS, Bounds, Layer, bounds_of, counts_of, dense_bounds, pack_bounds, run
from benchmarks.roofline_gpus import GPUS
from benchmarks.roofline_table import json_text, markdown_text
from engines.plugins.cuda.tactics import TACTICS

A100, H100 = (next(gpu for gpu in GPUS if gpu.name == name) for name in ("A100 40 GB", "H100"))
TILE = next(tactic for tactic in TACTICS if tactic.name == "64x32")
LAYER = Layer(28, 128)


def test_counts_of_a_layer() -> None:
    """784 pixels are 13 tiles of 64, 128 filters are 4 of 32. A window has 36 words, stored as 40: 5 steps, 3 stages. A
    step is 4 x 4 products; a warp has 16 pixels and 32 filters, so it reads one piece of pixels and two of filters.
    """
    found = counts_of(LAYER, 1, "FP32", TILE, is_and=False)
    assert found.blocks == 13 * 4
    assert found.products == 5 * 4 * 4
    tables, looked_up, written = 64 * 8, 3 * 64 * 4 * 8, 3 * (64 + 32) * 64
    read, outside, sorted_ = 5 * 4 * (1 + 2) * 512, 128 * 2 * 4, 2 * 64 * 32 * 4
    assert found.shared_bytes == tables + looked_up + written + read + outside + sorted_ == 73216
    bits, weights, sums, line = 784 * 4 * 4, 128 * 40 * 4, 128 * 16 * 4, 2 * 128 * 4 + 12
    assert found.memory_bytes == bits + weights + sums + line + 784 * 128 * 4 == 443660


def test_what_the_other_outputs_change() -> None:
    floats, halves, bits = (counts_of(LAYER, 1, out, TILE, is_and=False) for out in ("FP32", "FP16", "BITS"))
    assert floats.memory_bytes - halves.memory_bytes == 784 * 128 * 2
    assert halves.shared_bytes == floats.shared_bytes
    assert bits.shared_bytes == floats.shared_bytes - 2 * 64 * 32 * 4
    assert bits.memory_bytes == 784 * 4 * 4 * 2 + 128 * 40 * 4 + 128 * 16 * 4 + 128 * 4 + 4 * 4
    assert bits.products == floats.products


def test_and_takes_one_more_column_for_each_warp_that_has_the_pixels() -> None:
    assert counts_of(LAYER, 1, "FP32", TILE, is_and=True).products == 5 * 4 * (4 + 1)
    wide = next(tactic for tactic in TACTICS if tactic.name == "128x64")
    assert counts_of(LAYER, 1, "FP32", wide, is_and=True).products == 5 * 8 * (8 + 2)


def test_a_rule_weighs_tiles_by_what_a_stage_asks_of_shared_memory() -> None:
    """Windows of 1024 channels have 288 words, 18 stages; those of 512 have half."""
    for tactic in TACTICS:
        more, less = (counts_of(Layer(7, channels), 1, "BITS", tactic, is_and=False) for channels in (1024, 512))
        assert more.shared_bytes - less.shared_bytes == 9 * 128 * tactic.stage_turns
    turns = {tactic.name: tactic.stage_turns for tactic in TACTICS}
    assert turns["128x128"] / 2 < turns["128x64"] < 2 * turns["64x64"] < 4 * turns["64x32"]


def test_bounds_of_a_layer() -> None:
    """52 blocks on 108 multiprocessors: one each. 80 products of 32,768 at 16,384 a clock are 160 clocks."""
    found = bounds_of(counts_of(LAYER, 1, "FP32", TILE, is_and=False), A100)
    assert found.products == pytest.approx(160 / 1410.6, rel=1e-4)
    assert found.shared == pytest.approx(73216 / 128 / 1410.6, rel=1e-4)
    assert found.memory == pytest.approx(443660 / 1555e3)
    assert (found.by, found.all) == ("shared", 2.5)
    several = bounds_of(counts_of(LAYER, 8, "FP32", TILE, is_and=False), A100)
    assert several.products == pytest.approx(4 * 160 / 1410.6, rel=1e-4), "392 blocks: four on some"


def test_bounds_of_the_same_convolution_of_numbers() -> None:
    """115,605,504 multiply-accumulates."""
    assert LAYER.macs(1) == 28 * 28 * 128 * 128 * 9 == 115_605_504
    half = dense_bounds(LAYER, 1, A100, 2)
    assert half.products == pytest.approx(115_605_504 * 2 / 312e6)
    assert half.memory == pytest.approx((2 * 784 * 128 + 9 * 128 * 128) * 2 / 1555e3)
    assert dense_bounds(LAYER, 1, A100, 1).products == pytest.approx(half.products / 2)


def test_packing_apart_reads_floats_and_writes_bits() -> None:
    found = pack_bounds(LAYER, 32, "FP16", A100)
    assert found.work == pytest.approx((32 * 784 * 128 * 2 + 128 * 4 + 32 * 784 * 16) / 1555e3)


def test_what_bounds_work_is_the_slowest() -> None:
    assert Bounds(products=1, shared=2, memory=3).by == "memory"
    assert Bounds(products=4, shared=2, memory=3).by == "products"
    assert Bounds(products=1, shared=2, memory=3, launch=5).all == 5
    assert Bounds(products=1, shared=2, memory=3, launch=5).work == 3


def test_clocks_are_those_that_are_published() -> None:
    """In MHz: boost clocks; of the H100, that of its tensor cores."""
    published = {"A100 40 GB": 1410, "A100 80 GB": 1410, "A10": 1695, "L4": 2040, "L40S": 2520, "H100": 1830}
    assert {gpu.name: gpu.clock_mhz for gpu in GPUS} == pytest.approx(published, rel=0.015)
    assert 2 * A100.b1 * A100.processors * A100.clock_mhz / 1e6 == pytest.approx(4992, rel=1e-3), "TOPS of a whitepaper"
    assert H100.is_and
    assert not A100.is_and


def test_every_rate_that_is_not_of_a_whitepaper_is_said_to_be_assumed() -> None:
    said = [line for line in run()["assumed"] if "rate of 1 bit" in line]
    assert {line.split(",")[0] for line in said} == {"A10", "L4", "L40S", "H100"}


def test_every_row_of_a_table_has_its_columns() -> None:
    rows = [line for line in markdown_text(run()).splitlines() if line.startswith("|")]
    assert len(rows) == len(GPUS) * (2 + len(LAYERS) * len(BATCHES))
    assert {row.count("|") for row in rows} == {11}


def test_the_stored_bounds_are_those_of_the_kernels_as_they_are() -> None:
    """Otherwise: `python -m benchmarks.roofline`."""
    result = run()
    stored = (RESULTS / "roofline.json").read_text()
    assert json.loads(stored)["what"].endswith("computed, not measured")
    assert stored == json_text(result)
    assert (RESULTS / "roofline.md").read_text() == markdown_text(result)
