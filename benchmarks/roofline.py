"""What bounds binary convolutions on GPUs, from counted instructions and bytes: computed, not measured, without a GPU.

A bound is the time that one resource of a GPU takes at its full rate for all that a kernel asks of it; a layer takes at
least the largest of them. Left out are what overlaps badly, bank conflicts and instructions that are no products; and
nothing is thought to be in the second cache: what a layer finds there, as its predecessor left it, is not bounded by
memory. Counts are those of the kernels' own launches and tiles (`engines.plugins.cuda`), full tiles where a tile
reaches beyond the layer; that they are what the kernels do is tested by running these on a processor.

`python -m benchmarks.roofline` writes results/roofline.json and results/roofline.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from benchmarks.roofline_gpus import GPUS, LAUNCH_US, SHARED_BYTES_A_CLOCK, WHITEPAPER, Gpu
from benchmarks.roofline_table import write_tables
from engines.plugins.cuda.launches import OUT_TYPES, OutType, convolve_launch, default_tactic
from engines.plugins.cuda.layout import STEP_WORDS, row_words_of
from engines.plugins.cuda.tactics import STAGE_WORDS, TABLE_BYTES, WARP, WORD_BYTES, Tactic
from engines.plugins.ops import ConvAttributes, words_of

__all__ = [
    "BATCHES", "LAYERS", "Bounds", "Counts", "Layer", "bounds_of", "counts_of", "dense_bounds", "pack_bounds", "run",
]  # fmt: skip

BATCHES = (1, 8, 32)
KERNEL = (3, 3)
_MACS_OF_A_PRODUCT = 16 * 8 * 256
_OUT_BYTES = {"FP32": 4, "FP16": 2}
_LDMATRIX_BYTES = 4 * 8 * 16
_PADS = (1, 1, 1, 1)


class Layer(NamedTuple):
    """A 3x3 convolution with a border of zeros, as many filters as channels."""

    size: int
    channels: int

    def values(self, rows: int) -> int:
        """Of its input, and of its output."""
        return rows * self.size**2 * self.channels

    def macs(self, rows: int) -> int:
        """Multiply-accumulates."""
        return self.values(rows) * math.prod(KERNEL) * self.channels


LAYERS = (Layer(56, 64), Layer(28, 128), Layer(14, 256), Layer(7, 512))
"""Of ResNet-18."""


class Counts(NamedTuple):
    """Blocks of a launch, what each does (instructions of tensor cores, bytes to and from shared memory, of all lanes),
    and the bytes that the launch reads and writes in memory at least, each once.
    """

    blocks: int
    products: int
    shared_bytes: int
    memory_bytes: int


class Bounds(NamedTuple):
    """In us. `products` is that of tensor cores."""

    products: float
    shared: float
    memory: float
    launch: float = LAUNCH_US

    @property
    def work(self) -> float:
        """Without the launch: what kernels in a row, or of a larger batch, would come to."""
        return max(self.products, self.shared, self.memory)

    @property
    def all(self) -> float:
        return max(self)

    @property
    def by(self) -> str:
        """What bounds the work."""
        return max(("products", "shared", "memory"), key=lambda name: float(getattr(self, name)))


def counts_of(layer: Layer, rows: int, out: OutType, tactic: Tactic, *, is_and: bool) -> Counts:
    """Of one launch with this tile."""
    own, words = ConvAttributes(channels=layer.channels, pads=_PADS), words_of(layer.channels)
    shape = (rows, layer.size, layer.size, words)
    launch = convolve_launch(shape, layer.channels, KERNEL, own, out, 1, tactic)
    steps = row_words_of(KERNEL, words) // STEP_WORDS
    rows_of_products, columns = tactic.pixels // 16, tactic.filters // 8
    products = steps * rows_of_products * (columns + (tactic.warps_filters if is_and else 0))
    shared = _loaded_bytes(tactic, words, steps) + _epilogue_bytes(tactic, out)
    return Counts(math.prod(launch.grid), products, shared, _memory_bytes(layer, rows, out))


def _loaded_bytes(tactic: Tactic, words: int, steps: int) -> int:
    """Written into the stages, by threads that look up their pixels' windows, and read for products."""
    stages = -(-steps * STEP_WORDS // STAGE_WORDS)
    load_words = next(count for count in (4, 2, 1) if words % count == 0)
    looked_up = tactic.pixels * (STAGE_WORDS // load_words) * TABLE_BYTES
    written = (tactic.pixels + tactic.filters) * STAGE_WORDS * WORD_BYTES
    warps = tactic.threads // WARP
    of_a_warp = tactic.pixels // tactic.warps_pixels // 16 + tactic.filters // tactic.warps_filters // 16
    return tactic.pixels * TABLE_BYTES + stages * (looked_up + written) + steps * warps * of_a_warp * _LDMATRIX_BYTES


def _epilogue_bytes(tactic: Tactic, out: OutType) -> int:
    """Each lane asks which taps lay outside; floats are sorted: written and read."""
    outside = tactic.threads * tactic.pixels // tactic.warps_pixels // 16 * 2 * WORD_BYTES
    return outside + (0 if out == "BITS" else 2 * tactic.pixels * tactic.filters * WORD_BYTES)


def _memory_bytes(layer: Layer, rows: int, out: OutType) -> int:
    words, pixels = words_of(layer.channels), rows * layer.size**2
    bits = pixels * words * WORD_BYTES
    weights = layer.channels * row_words_of(KERNEL, words) * WORD_BYTES
    sums = layer.channels * (KERNEL[0] + 1) * (KERNEL[1] + 1) * 4
    if out == "BITS":
        return bits + weights + sums + layer.channels * 4 + words * WORD_BYTES + bits
    return bits + weights + sums + 2 * layer.channels * 4 + 3 * 4 + layer.values(rows) * _OUT_BYTES[out]


def bounds_of(counts: Counts, gpu: Gpu) -> Bounds:
    """Of a launch. The multiprocessor that gets most blocks is looked at, and all of the memory."""
    blocks = -(-counts.blocks // gpu.processors)
    return Bounds(
        products=blocks * counts.products * _MACS_OF_A_PRODUCT / gpu.b1 / gpu.clock_mhz,
        shared=blocks * counts.shared_bytes / SHARED_BYTES_A_CLOCK / gpu.clock_mhz,
        memory=counts.memory_bytes / gpu.bandwidth_gb_s / 1e3,
    )


def pack_bounds(layer: Layer, rows: int, out: OutType, gpu: Gpu) -> Bounds:
    """Of packing what a layer wrote as floats, in a kernel of its own: it reads and writes, and multiplies nothing."""
    bits = rows * layer.size**2 * words_of(layer.channels) * WORD_BYTES
    read = layer.values(rows) * _OUT_BYTES[out] + layer.channels * 4
    return Bounds(products=0, shared=0, memory=(read + bits) / gpu.bandwidth_gb_s / 1e3)


def dense_bounds(layer: Layer, rows: int, gpu: Gpu, bytes_: int) -> Bounds:
    """Of the same convolution in FP16 (2 bytes) or INT8 (1 byte), of values and weights alike, at its best: whole tiles
    on all multiprocessors, and shared memory that never waits.
    """
    rate = gpu.fp16 if bytes_ == 2 else gpu.int8
    weights = math.prod(KERNEL) * layer.channels**2
    return Bounds(
        products=layer.macs(rows) / rate / gpu.processors / gpu.clock_mhz,
        shared=0,
        memory=(2 * layer.values(rows) + weights) * bytes_ / gpu.bandwidth_gb_s / 1e3,
    )


def _entry(gpu: Gpu, layer: Layer, rows: int) -> dict[str, Any]:
    own, words = ConvAttributes(channels=layer.channels, pads=_PADS), words_of(layer.channels)
    shape = (rows, layer.size, layer.size, words)
    tactic = default_tactic(shape, layer.channels, KERNEL, own, processors=gpu.processors)
    counts = {out: counts_of(layer, rows, out, tactic, is_and=gpu.is_and) for out in OUT_TYPES}
    binary = {out: bounds_of(counts[out], gpu) for out in OUT_TYPES}
    apart = {out: pack_bounds(layer, rows, out, gpu) for out in OUT_TYPES if out != "BITS"}
    return {
        "gpu": gpu.name, "size": layer.size, "channels": layer.channels, "rows": rows, "tile": tactic.name,
        "counts": {out: one._asdict() for out, one in counts.items()},
        "binary": {out: _told(one) for out, one in binary.items()},
        "dense": {name: _told(dense_bounds(layer, rows, gpu, size)) for name, size in (("FP16", 2), ("INT8", 1))},
        "fused": {
            out: {
                "launched": round((binary[out].all + one.all) / binary["BITS"].all, 2),
                "work": round((binary[out].work + one.work) / binary["BITS"].work, 2),
            }
            for out, one in apart.items()
        },
    }  # fmt: skip


def _told(bounds: Bounds) -> dict[str, Any]:
    times = {f"{name}_us": round(value, 3) for name, value in bounds._asdict().items()}
    return {**times, "us": round(bounds.all, 3), "work_us": round(bounds.work, 3), "work_by": bounds.by}


def run() -> dict[str, Any]:
    """All GPUs, layers and batches. What writes bits is compared with one kernel that writes floats and one that packs
    them: `launched` with their launches, `work` without.
    """
    return {
        "name": "roofline",
        "what": "bounds of 3x3 convolutions of signs on GPUs: computed, not measured",
        "assumed": [
            f"a launch takes {LAUNCH_US} us",
            *(f"{one.name}, rate of 1 bit: {one.b1_basis}" for one in GPUS if one.b1_basis != WHITEPAPER),
        ],
        "gpus": [{**one._asdict(), "clock_mhz": round(one.clock_mhz)} for one in GPUS],
        "layers": [_entry(gpu, layer, rows) for gpu in GPUS for layer in LAYERS for rows in BATCHES],
    }  # fmt: skip


if __name__ == "__main__":
    write_tables(run())
