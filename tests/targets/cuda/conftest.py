from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from engines.plugins.cuda.cubins import compiled, options_for, sources
from engines.plugins.cuda.gate import complaints
from engines.plugins.cuda.machine_code import Instruction, Resources, entries_of, resources_of


class Compiled(NamedTuple):
    """One source for one SM."""

    sm: int
    entries: Mapping[str, list[Instruction]]
    resources: Mapping[str, Resources]

    @property
    def complaints(self) -> dict[str, list[str]]:
        return complaints(self.entries, self.resources, self.sm)


Compile = Callable[..., Compiled]


def disassembler() -> Path:
    """The program of package nvidia-cuda-nvdisasm."""
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    (found,) = (file for file in files if file.name == "nvdisasm")
    return Path(str(found.locate()))


@pytest.fixture(scope="session")
def compile_for(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a source for an SM and disassembles it; `changes` are texts of the sources to replace, each there once.

    What was compiled is kept for the session.
    """
    folder, tool, kept = tmp_path_factory.mktemp("cubins"), disassembler(), {}

    def compile_once(source: str, sm: int, changes: tuple[tuple[str, str, str], ...] = ()) -> Compiled:
        if (source, sm, changes) not in kept:
            texts = sources()
            for name, old, new in changes:
                assert texts[name].count(old) == 1, old
                texts[name] = texts[name].replace(old, new)
            code = compiled(source, texts, options_for(sm))
            file = folder / f"{len(kept)}.cubin"
            file.write_bytes(code)
            listing = subprocess.run([tool, "-c", file], capture_output=True, text=True, check=True).stdout
            kept[source, sm, changes] = Compiled(sm, entries_of(listing), resources_of(code))
        return kept[source, sm, changes]

    return compile_once
