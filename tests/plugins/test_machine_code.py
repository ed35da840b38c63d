"""What the compiler makes of the kernels, read from disassembled objects, also where this processor cannot run them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.emulated import COMPILER, build_driver

Line = tuple[int, str, str]
"""Address, mnemonic, operands."""
_LINE = re.compile(r"^\s*([0-9a-f]+):\t([0-9a-f ]+)\t(\S+)\s*(.*)$")
_TARGET = re.compile(r"^([0-9a-f]+)\b")
_PREFIX = "aarch64-linux-gnu-"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled for this processor's family, by the flags of the installed library."""
    if platform.machine() != "x86_64":
        pytest.skip("x86 kernels are compiled on x86")
    _need("cmake", "c++", "objdump", "nm")
    return build_driver(tmp_path_factory.mktemp("x86"), cross=False).parent


def _need(*tools: str) -> None:
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(absent)}; see .ci/debian-packages.txt")
    assert not absent


def code_of(folder: Path, source: str, tools: str = "") -> list[list[Line]]:
    """By function."""
    functions: list[list[Line]] = []
    for line in listing_of(folder, source, tools):
        if line.endswith(">:"):
            functions.append([])
        elif match := _LINE.match(line):
            functions[-1].append((int(match[1], 16), match[3], match[4]))
    assert functions
    return functions


def encodings_of(folder: Path, source: str) -> set[str]:
    """The first bytes of all instructions, in hexadecimal."""
    return {match[2][:2] for match in map(_LINE.match, listing_of(folder, source)) if match}


def listing_of(folder: Path, source: str, tools: str = "") -> list[str]:
    (found,) = folder.rglob(f"{source}.cpp.o")
    listed = subprocess.run([f"{tools}objdump", "-d", "-w", found], capture_output=True, text=True, check=True).stdout
    return listed.splitlines()


def loops_of(functions: list[list[Line]]) -> list[list[Line]]:
    """The innermost: from where a jump goes back to, to the jump, with no other such jump between."""
    found = []
    for lines in functions:
        backward = []
        for address, name, operands in lines:
            target = _TARGET.match(operands.split(", ")[-1])
            if name[0] in "jbct" and target and lines[0][0] <= int(target[1], 16) < address:
                backward.append((int(target[1], 16), address))
        for first, last in backward:
            if not any(first <= start and stop <= last and (start, stop) != (first, last) for start, stop in backward):
                found.append([line for line in lines if first <= line[0] <= last])
    return found


def counting(loops: list[list[Line]], mnemonic: str) -> list[list[Line]]:
    """Of the loops that count bits so, those that do most: the tile that nearly all of a layer goes through."""
    counts = [sum(name == mnemonic for _, name, _ in loop) for loop in loops]
    assert max(counts) > 0
    return [loop for loop, count in zip(loops, counts, strict=True) if count == max(counts)]


def test_avx512_counts_sixteen_registers_in_a_loop_that_leaves_the_stack_alone(objects: Path) -> None:
    for loop in counting(loops_of(code_of(objects, "kernel_avx512")), "vpopcntd"):
        counts = [operands for _, name, operands in loop if name == "vpopcntd"]
        assert len(counts) == 16, "four pixels by four registers of channels"
        assert all(re.fullmatch(r"%zmm\d+,%zmm\d+", operands) for operands in counts)
        adds = [name for _, name, _ in loop if name == "vpaddd"]
        xors = [name for _, name, _ in loop if name in ("vpxord", "vpxorq", "vpxor")]
        assert len(adds) == len(xors) == 16
        assert not [line for line in loop if "%rsp" in line[2]], "nothing is spilled"


def test_avx2_looks_up_in_a_loop_that_leaves_the_stack_alone(objects: Path) -> None:
    for loop in counting(loops_of(code_of(objects, "kernel_avx2")), "vpshufb"):
        assert all("%ymm" in operands for _, name, operands in loop if name == "vpshufb")
        assert not [line for line in loop if "%rsp" in line[2]], "nothing is spilled"
        assert not [line for line in loop if line[1].startswith("vmovdqa") and "(" not in line[2]], "nothing is moved"


_EVEX, _VEX = "62", ("c4", "c5")
"""What instructions of AVX-512, and those of AVX, AVX2 and BMI begin with, and no other in 64 bits."""


def test_avx2_has_nothing_of_avx512(objects: Path) -> None:
    found = encodings_of(objects, "kernel_avx2")
    assert found >= set(_VEX)
    assert _EVEX not in found
    assert _EVEX in encodings_of(objects, "kernel_avx512"), "it is seen where it is"


@pytest.mark.parametrize(
    "source", ["kernel_portable", "convolution", "dispatch", "pack", "c_api", "epilogue", "pool", "speed"]
)
def test_what_runs_on_every_processor_has_no_avx(objects: Path, source: str) -> None:
    found = encodings_of(objects, source)
    assert found
    assert not found & {_EVEX, *_VEX}


@pytest.mark.parametrize("source", ["kernel_avx2", "kernel_avx512"])
def test_nothing_of_an_instruction_set_is_shared_with_the_rest(objects: Path, source: str) -> None:
    """A function that several objects have is linked once, from any of them: it might need what a processor has not."""
    (found,) = objects.rglob(f"{source}.cpp.o")
    symbols = subprocess.run(["nm", "--defined-only", found], capture_output=True, text=True, check=True).stdout
    kinds = [line.split()[1] for line in symbols.splitlines()]
    assert kinds
    assert not set(kinds) & {"W", "V", "u"}


def test_neon_counts_sixteen_registers_in_a_loop_that_leaves_the_stack_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _need("cmake", COMPILER, f"{_PREFIX}objdump")
    folder = build_driver(tmp_path_factory.mktemp("aarch64")).parent
    for loop in counting(loops_of(code_of(folder, "kernel_neon", _PREFIX)), "cnt"):
        names = [name for _, name, _ in loop]
        assert names.count("cnt") == names.count("eor") == 16
        assert not [line for line in loop if "[sp" in line[2]], "nothing is spilled"
