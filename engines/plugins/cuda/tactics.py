"""The tile shapes of convolutions on the GPU, what each takes of a multiprocessor, and the rule that chooses one.

The numbers are those of tile.cuh; the gate (machine_code.py) holds compiled kernels to them.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BLOCKS", "PROCESSORS", "STAGE_WORDS", "TACTICS", "Processor", "Tactic", "cheapest"]

WARP = 32
STAGE_WORDS, STEP_WORDS = 16, 8
WORD_BYTES, TABLE_BYTES = 4, 8
"""A pixel's entry in the tables of where its window starts, and of its taps inside."""
LINE_BYTES = 128
"""Of shared memory, from all banks at once."""


class Tactic(NamedTuple):
    """One tile: so many pixels and filters a block, shared among so many warps each way, through so many stages."""

    number: int
    pixels: int
    filters: int
    warps_pixels: int
    warps_filters: int
    stages: int

    @property
    def name(self) -> str:
        """As entries have it."""
        return f"{self.pixels}x{self.filters}"

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.warps_pixels * self.warps_filters * WARP

    @property
    def sorted_filters(self) -> int:
        """Filters whose floats an epilogue sorts at once."""
        return self.filters if min(self.pixels, self.filters) < 64 else 64

    @property
    def shared_bytes(self) -> int:
        """Tables, and the stages; an epilogue that writes floats sorts them there."""
        stages = self.stages * (self.pixels + self.filters) * STAGE_WORDS * WORD_BYTES
        filters = self.sorted_filters
        floats = max(filters * (self.pixels + 4), self.pixels * (filters + 4)) * WORD_BYTES
        return self.pixels * TABLE_BYTES + max(stages, floats)

    def products(self, *, counts_set_bits: bool) -> int:
        """Instructions of tensor cores in the loop of a kernel: one stage of a warp. On AND, each 16 pixels have
        one more, for the bits that are set.
        """
        rows = self.pixels // self.warps_pixels // 16
        columns = self.filters // self.warps_filters // 8 + counts_set_bits
        return STAGE_WORDS // STEP_WORDS * rows * columns

    @property
    def matrix_reads(self) -> int:
        """Instructions that read four matrices from shared memory, in the same loop: 16 pixels, or 16 filters each."""
        rows, columns = self.pixels // self.warps_pixels // 16, self.filters // self.warps_filters // 16
        return STAGE_WORDS // STEP_WORDS * (rows + columns)

    @property
    def stage_turns(self) -> int:
        """Turns of shared memory, of all its banks, that a block takes for a stage with loads of 16 bytes: looking up
        windows, writing, and reading for products.
        """
        pieces = STAGE_WORDS * WORD_BYTES // 16
        looked_up = self.pixels * pieces * TABLE_BYTES
        written = (self.pixels + self.filters) * STAGE_WORDS * WORD_BYTES
        read = self.threads // WARP * self.matrix_reads * 512
        return (looked_up + written + read) // LINE_BYTES


TACTICS = (
    Tactic(1, 128, 64, 2, 2, 3),
    Tactic(2, 64, 64, 2, 2, 3),
    Tactic(3, 64, 32, 4, 1, 3),
    Tactic(4, 32, 64, 2, 2, 3),
    Tactic(5, 16, 128, 1, 4, 3),
    Tactic(6, 128, 128, 2, 4, 2),
)
"""The numbers are those that TensorRT keeps in its timing cache: never give one to another shape."""


class Processor(NamedTuple):
    """What a multiprocessor has for all of its blocks, and what each block takes beside its own."""

    registers: int
    shared_bytes: int
    threads: int
    blocks: int
    reserved_bytes: int = 1024

    def blocks_of(self, registers: int, shared_bytes: int, threads: int) -> int:
        """How many blocks are there at once. Registers go to warps in steps of 256, shared memory in steps of 128."""
        a_warp = -(-registers * WARP // 256) * 256
        shared = -(-(shared_bytes + self.reserved_bytes) // 128) * 128
        warps = min(self.registers // a_warp, self.threads // WARP)
        return min(warps // (threads // WARP), self.shared_bytes // shared, self.blocks)


PROCESSORS = {
    80: Processor(65536, 164 * 1024, 2048, 32),
    86: Processor(65536, 100 * 1024, 1536, 16),
    87: Processor(65536, 164 * 1024, 1536, 16),
    89: Processor(65536, 100 * 1024, 1536, 24),
    90: Processor(65536, 228 * 1024, 2048, 32),
}
"""By SM, as CUDA's programming guide has them (technical specifications per compute capability)."""


BLOCKS = {
    "128x128": {80: 2, 86: 2, 87: 2, 89: 2, 90: 2},
    "128x64": {80: 4, 86: 2, 87: 4, 89: 2, 90: 4},
    "64x64": {80: 5, 86: 3, 87: 5, 89: 3, 90: 5},
    "64x32": {80: 7, 86: 5, 87: 7, 89: 5, 90: 7},
    "32x64": {80: 7, 86: 5, 87: 7, 89: 5, 90: 7},
    "16x128": {80: 5, 86: 3, 87: 5, 89: 3, 90: 6},
}
"""Blocks of each tile that a multiprocessor has at once, at least, by SM: what compiled kernels are held to."""


def cheapest(pixels: int, filters: int, group: int, processors: int) -> Tactic:
    """The tile that takes least: how often all multiprocessors must take a block each, times the turns of shared memory
    of such a block, which bound all tiles where 1-bit units are fastest. Where tactics can be timed, time decides.
    """

    def cost(tactic: Tactic) -> int:
        blocks = -(-pixels // tactic.pixels) * -(-(filters // group) // tactic.filters) * group
        return -(-blocks // processors) * tactic.stage_turns

    return min(TACTICS, key=cost)
