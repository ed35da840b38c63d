"""What a kernel became: its instructions, from nvdisasm's text, and what it takes of a processor, from its cubin."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Instruction", "Resources", "entries_of", "resources_of"]

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),")
_OTHER_SECTION = re.compile(r"^\s*\.section\s")
_LABEL = re.compile(r"^\s*(\.L_\w+|\$\w+):")
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?(?:UP|P)\w+\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")


class Instruction(NamedTuple):
    """One line of a listing; a label is one too, named ":"."""

    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The first part of an opcode: BMMA of BMMA.168256.XOR.POPC."""
        return self.opcode.split(".")[0]


class Resources(NamedTuple):
    """Of one entry: registers of a thread, bytes of its stack, and bytes of shared memory that its code has fixed."""

    registers: int
    stack_bytes: int
    shared_bytes: int


def entries_of(listing: str) -> dict[str, list[Instruction]]:
    """All entries of what `nvdisasm -c` prints."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            current = found.setdefault(section[1], [])
        elif _OTHER_SECTION.match(line):
            current = None
        elif current is not None:
            if label := _LABEL.match(line):
                current.append(Instruction(":", label[1]))
            elif match := _LINE.match(line):
                current.append(Instruction(match[1], match[2]))
    return found


_REGISTERS, _FRAME_BYTES = 0x2F, 0x11
"""Attributes that the compiler notes of each function (EIATTR_REGCOUNT and EIATTR_FRAME_SIZE)."""
_TWO_NUMBERS, _ATTRIBUTE_BYTES = 0x04, 4
_SECTION_HEADER, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")


class _Section(NamedTuple):
    name: str
    link: int
    content: bytes
    size: int


def resources_of(cubin: bytes) -> dict[str, Resources]:
    """All entries of an ELF of machine code. Raises ValueError where that is no such file."""
    if cubin[:4] != b"\x7fELF":
        raise ValueError("no ELF")
    sections = _sections(cubin)
    by_name = {section.name: section for section in sections}
    symbols, info = by_name[".symtab"], by_name[".nv.info"]
    names = sections[symbols.link].content
    noted: dict[str, dict[int, int]] = {}
    for attribute, symbol, number in _attributes(info.content):
        name = _text(names, _SYMBOL.unpack_from(symbols.content, symbol * _SYMBOL.size)[0])
        noted.setdefault(name, {})[attribute] = number
    shared = {name: by_name[f".nv.shared.{name}"].size if f".nv.shared.{name}" in by_name else 0 for name in noted}
    return {
        name: Resources(of[_REGISTERS], of[_FRAME_BYTES], shared[name])
        for name, of in noted.items()
        if _REGISTERS in of  # subroutines of the compiler have only a frame
    }


def _sections(elf: bytes) -> list[_Section]:
    start, count, of_names = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HH", elf, 0x3C)
    headers = [_SECTION_HEADER.unpack_from(elf, start + i * _SECTION_HEADER.size) for i in range(count)]
    names = elf[headers[of_names][4] :]
    return [
        _Section(_text(names, name), link, elf[offset : offset + size], size)
        for name, _, _, _, offset, size, link, *_ in headers
    ]


def _attributes(info: bytes) -> Iterator[tuple[int, int, int]]:
    """Attribute, symbol and number, of those that have these two."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += _ATTRIBUTE_BYTES
        if form == _TWO_NUMBERS:
            yield attribute, *struct.unpack_from("<II", info, at)
            at += size


def _text(names: bytes, start: int) -> str:
    return names[start : names.index(b"\0", start)].decode()
