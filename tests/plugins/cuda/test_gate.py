"""The gate on machine code: how it reads a listing and a cubin, and what it says of each thing that it looks for."""

from __future__ import annotations

import struct

import pytest

from engines.plugins.cuda.gate import complaints, complaints_of
from engines.plugins.cuda.machine_code import Instruction, Resources, entries_of, resources_of
from engines.plugins.cuda.tactics import PROCESSORS, TACTICS

LISTING = """
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS"
	.section	.nv.info,"",@"SHT_CUDA_INFO"
        /*0000*/ 	.byte	0x04, 0x2f
	.section	.text.pool_16,"ax",@progbits
pool_16:
.text.pool_16:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/              @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;
.L_x_1:
        /*0030*/                   LDG.E.128 R4, [R2.64] ;
        /*0040*/               @P1 EXIT ;
	.section	.text.pool_4,"ax",@progbits
.text.pool_4:
        /*0000*/                   LDG.E R4, desc[UR4][R2.64] ;
	.section	.nv.shared.pool_4,"aw",@nobits
        /*0000*/                   LDG.E R5, [R2.64] ;
"""

SPARE = Resources(registers=32, stack_bytes=0, shared_bytes=0)


def of_one_tile(sm: int = 80, **changes: int) -> list[Instruction]:
    """What a tile of 64x32 is compiled to, as far as it is looked at; changes by opcode with "_" for "."."""
    kind = "AND" if sm >= 90 else "XOR"
    counts = {f"BMMA.168256.{kind}.POPC": 10 if sm >= 90 else 8, "LDSM.16.M88.4": 6, "LDGSTS.E.BYPASS.128": 6}
    counts |= {name.replace("_", "."): count for name, count in changes.items()}
    return [Instruction(opcode, "") for opcode, count in counts.items() for _ in range(count)]


def said_of(code: list[Instruction], resources: Resources = SPARE, sm: int = 80) -> list[str]:
    return complaints_of("convolve_64x32_4", code, resources, sm)


def test_a_listing_is_read_by_entry_with_its_labels_and_without_predicates() -> None:
    found = entries_of(LISTING)
    assert [(one.opcode, one.operands) for one in found["pool_16"]] == [
        ("MOV", "R1, c[0x0][0x28]"), ("BRA", "`(.L_x_1)"), ("UIADD3", "UR4, UR4, 0x1, URZ"), (":", ".L_x_1"),
        ("LDG.E.128", "R4, [R2.64]"), ("EXIT", ""),
    ]  # fmt: skip
    assert [one.opcode for one in found["pool_4"]] == ["LDG.E"], "other sections hold no code"
    assert complaints(found, dict.fromkeys(found, SPARE), 80) == {}


@pytest.mark.parametrize("sm", PROCESSORS)
def test_what_is_expected_is_not_complained_about(sm: int) -> None:
    assert said_of(of_one_tile(sm), sm=sm) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"BMMA_168256_XOR_POPC": 7}, "7 BMMA.168256.XOR.POPC; expected 8"),
        ({"BMMA_168256_AND_POPC": 1}, "1 BMMA.168256.AND.POPC; expected BMMA.168256.XOR.POPC alone"),
        ({"BMMA_88128_XOR_POPC": 2}, "2 BMMA.88128.XOR.POPC; expected BMMA.168256.XOR.POPC alone"),
        ({"LDSM_16_M88_4": 5}, "5 LDSM; expected 6"),
        ({"LDGSTS_E": 2}, "copies of tiles are 2 LDGSTS.E, 6 LDGSTS.E.BYPASS.128; expected 6 LDGSTS.E.BYPASS.128"),
        ({"MOVM_U4TO8_M832": 3}, "moves parts of matrices (MOVM, 3 times): tensor cores that count bits are emulated"),
        (
            {"IMMA_16832_U8_U8": 1},
            "multiplies whole numbers (IMMA, 1 times): tensor cores that count bits are emulated",
        ),
        ({"STL_64": 2, "LDL": 1}, "spills: 3 accesses to the stack"),
        ({"CALL_REL_NOINC": 1}, "calls "),
    ],
)
def test_each_thing_in_the_code_is_told(changes: dict[str, int], said: str) -> None:
    assert said_of(of_one_tile(**changes)) == [said]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (SPARE._replace(stack_bytes=16), "spills: a stack of 16 bytes"),
        (SPARE._replace(shared_bytes=64), "64 bytes of shared memory are fixed in the code"),
        (SPARE._replace(registers=80), "6 blocks on a multiprocessor, of 80 registers a thread; 7 are stated"),
    ],
)
def test_each_thing_in_the_resources_is_told(resources: Resources, said: str) -> None:
    assert said_of(of_one_tile(), resources) == [said]


def test_more_registers_than_a_block_may_have_are_told() -> None:
    said = said_of(of_one_tile(), SPARE._replace(registers=130))
    assert "130 registers; at most 128" in said


def test_a_call_to_a_label_is_a_jump_where_nothing_returns() -> None:
    jump, label = Instruction("CALL.REL.NOINC", "`(.L_x_7)"), Instruction(":", ".L_x_7")
    assert said_of([*of_one_tile(), jump, label]) == []
    assert said_of([*of_one_tile(), jump]) == ["calls `(.L_x_7)"]
    assert said_of([*of_one_tile(), jump, label, Instruction("RET.REL.NODEC", "R2")]) == ["calls `(.L_x_7)"]


def test_shared_memory_of_the_system_is_not_the_kernels() -> None:
    assert said_of(of_one_tile(90), SPARE._replace(shared_bytes=1024), sm=90) == []


def test_loads_as_wide_as_their_entry_says() -> None:
    narrow = [Instruction("LDG.E", ""), Instruction("LDG.E", "")]
    assert complaints_of("pack_fp32_16", narrow, SPARE, 80) == ["no loads of 16 bytes (LDG.E.128), but 2 LDG.E"]
    assert complaints_of("pack_fp16_8", narrow, SPARE, 80) == ["no loads of 8 bytes (LDG.E.64), but 2 LDG.E"]
    assert complaints_of("pack_fp32_4", narrow, SPARE, 80) == []
    assert complaints_of("pack_rows_fp32", narrow, SPARE, 80) == []


def an_elf(attributes: bytes) -> bytes:
    """With one symbol, `pool_4`, and what is noted of it."""
    names, section_names = b"\0pool_4\0", b"\0.shstrtab\0.strtab\0.symtab\0.nv.info\0.nv.shared.pool_4\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0, 0, 0, 0, 0)
    contents = {".shstrtab": section_names, ".strtab": names, ".symtab": symbols, ".nv.info": attributes}
    body, headers = b"", [bytes(64)]
    for name, content in contents.items():
        place = 64 + len(body), len(content)
        headers.append(struct.pack("<IIQQQQIIQQ", section_names.index(name.encode()), 0, 0, 0, *place, 2, 0, 0, 0))
        body += content
    headers.append(struct.pack("<IIQQQQIIQQ", section_names.index(b".nv.shared"), 8, 0, 0, 0, 48, 0, 0, 0, 0))
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<Q", header, 0x28, 64 + len(body))
    struct.pack_into("<HH", header, 0x3C, len(headers), 1)
    return bytes(header) + body + b"".join(headers)


def test_resources_are_read_from_an_elf() -> None:
    registers, frame = struct.pack("<BBHII", 4, 0x2F, 8, 1, 77), struct.pack("<BBHII", 4, 0x11, 8, 1, 24)
    other = struct.pack("<BBH", 3, 0x1B, 255)
    assert resources_of(an_elf(registers + other + frame)) == {"pool_4": Resources(77, 24, 48)}
    assert resources_of(an_elf(frame)) == {}, "no entry has no number of registers"
    with pytest.raises(ValueError, match="no ELF"):
        resources_of(b"something else")


def test_blocks_are_bounded_by_registers_shared_memory_and_threads() -> None:
    processor = PROCESSORS[86]
    assert processor.blocks_of(128, 0, 128) == 4, "65536 registers / (128 x 128)"
    assert processor.blocks_of(129, 0, 128) == 3, "registers go to warps in steps of 256"
    assert processor.blocks_of(16, 0, 128) == 12, "1536 threads"
    assert processor.blocks_of(16, 0, 32) == 16, "so many blocks"
    assert processor.blocks_of(16, 49 * 1024, 128) == 2, "100 KB, and 1 KB of each block is the system's"
    assert processor.blocks_of(16, 49 * 1024 + 1, 128) == 1
    assert PROCESSORS[80].blocks_of(16, 40 * 1024, 128) == 4


def test_tiles_fit_where_no_more_is_asked_for() -> None:
    assert all(tactic.shared_bytes <= 48 * 1024 for tactic in TACTICS)
