"""What GPUs can do at most, as their makers say it. Data only.

Multiprocessors, dense FP16 rates of tensor cores and bandwidths: NVIDIA's data sheets of A100 (40 and 80 GB SXM), A10,
L4, L40S and H100 (SXM), and the whitepapers of GA100 and GH100. Clocks follow from the FP16 rates: those are given for
the clock that tensor cores can hold, which for the H100 is not the highest one.

Multiply-accumulates a clock and multiprocessor: GA100's whitepaper has FP16, INT8 and 1 bit. For GA10x and AD10x no
source for 1 bit was found: that it is 8 times INT8, as on GA100, is assumed. On GH100, 1 bit was measured by others,
with mma.sync and AND (0.54 instructions a clock); FP16 and INT8 are those of wgmma.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GPUS", "LAUNCH_US", "SHARED_BYTES_A_CLOCK", "WHITEPAPER", "Gpu"]

SHARED_BYTES_A_CLOCK = 128
"""Of a multiprocessor: 32 banks of 4 bytes, on all of them."""
LAUNCH_US = 2.5
"""Assumed, the middle of 2 to 3 us: from one small kernel's start to the next one's on a stream."""


class Gpu(NamedTuple):
    """`fp16`, `int8` and `b1` are multiply-accumulates a clock and multiprocessor; `tera_fp16` are dense FLOPS."""

    name: str
    sm: int
    processors: int
    tera_fp16: float
    bandwidth_gb_s: float
    fp16: int
    int8: int
    b1: float
    b1_basis: str

    @property
    def clock_mhz(self) -> float:
        """At which the FP16 rate is reached."""
        return self.tera_fp16 * 1e6 / (2 * self.fp16 * self.processors)

    @property
    def is_and(self) -> bool:
        """Whether its kernels count with AND, which takes one more column of products."""
        return self.sm >= 90


WHITEPAPER = "whitepaper"
_ASSUMED = "8x INT8, as on GA100"
GPUS = (
    Gpu("A100 40 GB", 80, 108, 312, 1555, 1024, 2048, 16384, WHITEPAPER),
    Gpu("A100 80 GB", 80, 108, 312, 2039, 1024, 2048, 16384, WHITEPAPER),
    Gpu("A10", 86, 72, 125, 600, 512, 1024, 8192, _ASSUMED),
    Gpu("L4", 89, 58, 121, 300, 512, 1024, 8192, _ASSUMED),
    Gpu("L40S", 89, 142, 362.05, 864, 512, 1024, 8192, _ASSUMED),
    Gpu("H100", 90, 132, 989.4, 3350, 2048, 4096, 17700, "measured by others, with mma.sync and AND"),
)
