"""What machine code of the kernels must be like, or they are not what their speed was computed from. Pure.

A complaint is a sentence. Held to: the instructions of tensor cores that a tile makes, and no emulation of them; loads
as wide as promised; nothing spilled; as many blocks on a multiprocessor as tactics.BLOCKS states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from engines.plugins.cuda.machine_code import Instruction, Resources
from engines.plugins.cuda.tactics import BLOCKS, PROCESSORS, STAGE_WORDS, TACTICS, Tactic

__all__ = ["complaints", "complaints_of"]

REGISTERS, SHARED_BYTES = 128, 48 * 1024
_FROM_SM_90_RESERVED = 1024
"""The cubin counts the system's own part of shared memory since then; tactics.Processor counts it, too."""
_COPIES = {16: "LDGSTS.E.BYPASS.128", 8: "LDGSTS.E.64", 4: "LDGSTS.E"}
_LOADS = {16: "LDG.E.128", 8: "LDG.E.64"}
_EMULATION = {"MOVM": "moves parts of matrices", "IMMA": "multiplies whole numbers"}
_STACK = ("STL", "LDL")
_STAGES_LOADED = 2
"""Places in the code that load a stage: before the loop, and in it."""
_UNROLLED_WINDOWS = 4


def complaints(
    entries: Mapping[str, Sequence[Instruction]], resources: Mapping[str, Resources], sm: int
) -> dict[str, list[str]]:
    """By entry, of all that was compiled for one SM; entries with none are left out."""
    found = {name: complaints_of(name, code, resources[name], sm) for name, code in entries.items()}
    return {name: said for name, said in found.items() if said}


def complaints_of(entry: str, code: Sequence[Instruction], resources: Resources, sm: int) -> list[str]:
    """Of one entry."""
    said = [*_anywhere(code, resources, sm)]
    if entry.startswith("convolve_"):
        _, tile, load_words = entry.split("_")
        tactic = next(tactic for tactic in TACTICS if tactic.name == tile)
        said += _of_products(tactic, code, sm)
        said += _of_copies(tactic, int(load_words), code)
        said += _of_occupancy(tactic, resources, sm)
    elif not entry.startswith("pack_rows_"):
        said += _of_loads(int(entry.rpartition("_")[2]), code)
    return said


def _anywhere(code: Sequence[Instruction], resources: Resources, sm: int) -> Iterator[str]:
    labels = {one.operands for one in code if one.opcode == ":" and one.operands.startswith(".L_")}
    returns = any(one.base == "RET" for one in code)
    for one in code:
        # a loop may be left by a CALL to a label behind it, from where nothing returns: that is a jump
        if one.base == "CALL" and (returns or one.operands.strip("`()") not in labels):
            yield f"calls {one.operands}"
    for base, what in _EMULATION.items():
        if count := sum(one.base == base for one in code):
            yield f"{what} ({base}, {count} times): tensor cores that count bits are emulated"
    if count := sum(one.base in _STACK for one in code):
        yield f"spills: {count} accesses to the stack"
    if resources.stack_bytes:
        yield f"spills: a stack of {resources.stack_bytes} bytes"
    if resources.registers > REGISTERS:
        yield f"{resources.registers} registers; at most {REGISTERS}"
    if fixed := resources.shared_bytes - (_FROM_SM_90_RESERVED if sm >= 90 and resources.shared_bytes else 0):
        yield f"{fixed} bytes of shared memory are fixed in the code"


def _of_products(tactic: Tactic, code: Sequence[Instruction], sm: int) -> Iterator[str]:
    is_and = sm >= 90
    wanted = f"BMMA.168256.{'AND' if is_and else 'XOR'}.POPC"
    counts = Counter(one.opcode for one in code if one.base == "BMMA")
    expected = tactic.products(counts_set_bits=is_and)
    if counts[wanted] != expected:
        yield f"{counts[wanted]} {wanted}; expected {expected}"
    for other in counts.keys() - {wanted}:
        yield f"{counts[other]} {other}; expected {wanted} alone"
    reads = sum(one.base == "LDSM" for one in code)
    if reads != tactic.matrix_reads:
        yield f"{reads} LDSM; expected {tactic.matrix_reads}"


def _of_copies(tactic: Tactic, load_words: int, code: Sequence[Instruction]) -> Iterator[str]:
    windows = -(-tactic.pixels * STAGE_WORDS // load_words // tactic.threads)
    expected = Counter({_COPIES[16]: tactic.filters * STAGE_WORDS // 4 // tactic.threads * _STAGES_LOADED})
    expected[_COPIES[4 * load_words]] += min(windows, _UNROLLED_WINDOWS) * _STAGES_LOADED
    found = Counter(one.opcode for one in code if one.base == "LDGSTS")
    if found != expected:
        yield f"copies of tiles are {_counted(found)}; expected {_counted(expected)}"


def _of_loads(wide: int, code: Sequence[Instruction]) -> Iterator[str]:
    if wide in _LOADS and not any(one.opcode.startswith(_LOADS[wide]) for one in code):
        loads = Counter(one.opcode for one in code if one.base == "LDG")
        yield f"no loads of {wide} bytes ({_LOADS[wide]}), but {_counted(loads)}"


def _of_occupancy(tactic: Tactic, resources: Resources, sm: int) -> Iterator[str]:
    if tactic.shared_bytes > SHARED_BYTES:
        yield f"{tactic.shared_bytes} bytes of shared memory; at most {SHARED_BYTES}"
    blocks = PROCESSORS[sm].blocks_of(resources.registers, tactic.shared_bytes, tactic.threads)
    stated = BLOCKS[tactic.name][sm]
    if blocks < stated:
        yield f"{blocks} blocks on a multiprocessor, of {resources.registers} registers a thread; {stated} are stated"


def _counted(opcodes: Counter[str]) -> str:
    return ", ".join(f"{count} {opcode}" for opcode, count in sorted(opcodes.items())) or "none"
