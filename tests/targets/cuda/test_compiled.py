"""Kernels of the GPU, compiled for each SM that multiplies bits: none is other than its speed was computed from.

Kernels that were spoiled on purpose are complained about, each for what was done to it.
"""

from __future__ import annotations

import re

import pytest

from engines.plugins.cuda.cubins import SMS_WITH_BITS, SOURCES
from engines.plugins.cuda.tactics import BLOCKS, PROCESSORS, TACTICS
from tests.targets.cuda.conftest import Compile

LARGEST_ALONE = tuple(
    ("convolve.cu", f"\nENTRIES({tactic.name}, ", "\n// ") for tactic in TACTICS if tactic.name != "128x64"
)
"""Changes after which a source has one tile only: it compiles sooner."""
LARGEST = {f"convolve_128x64_{words}" for words in (4, 2, 1)}

ENTRIES = {
    "pack": {
        "pack_fp32_16", "pack_fp32_8", "pack_fp32_4", "pack_fp16_16", "pack_fp16_8", "pack_fp16_2", "pack_rows_fp32",
        "pack_rows_fp16",
    },
    "convolve": {f"convolve_{tactic.name}_{words}" for tactic in TACTICS for words in (4, 2, 1)},
    "pool": {"pool_16", "pool_4"},
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("sm", SMS_WITH_BITS)
def test_nothing_is_complained_about(source: str, sm: int, compile_for: Compile) -> None:
    compiled = compile_for(source, sm)
    assert compiled.entries.keys() == compiled.resources.keys() == ENTRIES[source]
    assert compiled.complaints == {}


@pytest.mark.parametrize("sm", SMS_WITH_BITS)
def test_stated_blocks_are_those_that_registers_or_memory_allow(sm: int, compile_for: Compile) -> None:
    """They are stated as the least of the three widths of loads: no tile has one more in all of them."""
    resources, processor = compile_for("convolve", sm).resources, PROCESSORS[sm]
    for tactic in TACTICS:
        entries = [resources[f"convolve_{tactic.name}_{words}"] for words in (4, 2, 1)]
        blocks = [processor.blocks_of(entry.registers, tactic.shared_bytes, tactic.threads) for entry in entries]
        assert min(blocks) in (BLOCKS[tactic.name][sm], BLOCKS[tactic.name][sm] + 1), tactic


def operation(old: str, new: str) -> tuple[str, str, str]:
    return "ptx.cuh", f'#define BITSERVE_POPCOUNT_OF "{old}"', f'#define BITSERVE_POPCOUNT_OF "{new}"'


def test_xor_on_hopper_is_a_subroutine_and_is_told_so(compile_for: Compile) -> None:
    spoiled = compile_for("convolve", 90, (operation("and", "xor"), *LARGEST_ALONE))
    assert spoiled.complaints.keys() == LARGEST
    for said in spoiled.complaints.values():
        assert any(one.startswith("calls ") and "mma_bit_internal_xor" in one for one in said)
        assert any(re.search(r"BMMA\.168256\.AND\.POPC; expected 40", one) for one in said)


def test_and_on_ampere_is_told_so(compile_for: Compile) -> None:
    spoiled = compile_for("convolve", 80, (operation("xor", "and"), *LARGEST_ALONE))
    assert spoiled.complaints["convolve_128x64_4"] == [
        "0 BMMA.168256.XOR.POPC; expected 32",
        "32 BMMA.168256.AND.POPC; expected BMMA.168256.XOR.POPC alone",
    ]


def test_a_kernel_that_spills_is_told_so(compile_for: Compile) -> None:
    """As many blocks of the largest tile as leave it no registers for its sums."""
    more_blocks = "convolve.cu", "ENTRIES(128x64, 4,", "ENTRIES(128x64, 8,"
    spoiled = compile_for("convolve", 86, (more_blocks, *LARGEST_ALONE))
    assert spoiled.complaints.keys() == LARGEST
    for said in spoiled.complaints.values():
        assert any(re.fullmatch(r"spills: \d+ accesses to the stack", one) for one in said)
        assert any(re.fullmatch(r"spills: a stack of \d+ bytes", one) for one in said)


NARROW_COPIES = """
    for (uint32_t i = 0; i < bytes; i += 4)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address + i),
                     "l"(static_cast<const char*>(from) + i), "r"(is_there ? 4 : 0) : "memory");
    return;
    const uint32_t size = is_there ? bytes : 0;"""


def test_copies_of_four_bytes_where_sixteen_are_promised_are_told_so(compile_for: Compile) -> None:
    narrow = "ptx.cuh", "const uint32_t size = is_there ? bytes : 0;", NARROW_COPIES
    spoiled = compile_for("convolve", 89, (narrow, *LARGEST_ALONE))
    assert spoiled.complaints.keys() == LARGEST
    assert spoiled.complaints["convolve_128x64_4"] == [
        "copies of tiles are 48 LDGSTS.E; expected 12 LDGSTS.E.BYPASS.128"
    ]


@pytest.mark.parametrize(("source", "entries"), [("pack", {"pack_fp32_16", "pack_fp16_16"}), ("pool", {"pool_16"})])
def test_loads_of_four_bytes_where_sixteen_are_promised_are_told_so(
    source: str, entries: set[str], compile_for: Compile
) -> None:
    narrow = """Words load_global4(const void* from) {
    const volatile uint32_t* words = static_cast<const volatile uint32_t*>(from);
    return Words{{words[0], words[1], words[2], words[3]}};
}
__device__ __forceinline__ Words unused(const void* from) {"""
    spoiled = compile_for(source, 80, (("ptx.cuh", "Words load_global4(const void* from) {", narrow),))
    assert spoiled.complaints.keys() == entries
    for said in spoiled.complaints.values():
        assert [one for one in said if one.startswith("no loads of 16 bytes (LDG.E.128), but ")] == said


def test_registers_that_leave_too_few_blocks_are_told_so(compile_for: Compile) -> None:
    compiled, entry = compile_for("convolve", 80), "convolve_32x64_4"
    greedy = dict(compiled.resources)
    greedy[entry] = greedy[entry]._replace(registers=120)
    assert compiled._replace(resources=greedy).complaints == {
        entry: ["4 blocks on a multiprocessor, of 120 registers a thread; 7 are stated"]
    }
