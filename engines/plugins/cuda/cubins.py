"""Kernels of the GPU in machine code: compiled for one SM by NVRTC, once, and kept in a folder.

NVRTC needs no GPU and no CUDA toolkit: it is a library of its own, and the sources include nothing of others.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import EngineError

__all__ = ["SMS_WITH_BITS", "SOURCES", "compiled", "cubin", "options_for", "sources"]

SMS_WITH_BITS = (80, 86, 87, 89, 90)
"""Those whose tensor cores count bits. sm_100 and later have no such instruction, and those before 80 none so wide."""

SOURCES = ("pack", "convolve", "pool")
_FOLDER = Path(__file__).parent


def sources() -> dict[str, str]:
    """The text of all files that kernels consist of, by name."""
    return {path.name: path.read_text("utf-8") for path in sorted(_FOLDER.glob("*.cu*"))}


def options_for(sm: int) -> tuple[str, ...]:
    """What NVRTC is told: machine code for exactly this SM, and sums and products rounded one by one."""
    return f"--gpu-architecture=sm_{sm}", "--std=c++17", "--fmad=false"


def cubin(source: str, sm: int, folder: Path | None) -> bytes:
    """The machine code of one of SOURCES; read from `folder` where it was kept, and kept there where not."""
    if sm not in SMS_WITH_BITS:
        known = ", ".join(f"sm_{one}" for one in SMS_WITH_BITS)
        raise EngineError(f"sm_{sm} does not multiply bits on its tensor cores in one instruction; {known} do")
    texts, options = sources(), options_for(sm)
    if folder is None:
        return compiled(source, texts, options)
    kept = folder / f"{source}-{_digest(texts, options)}-sm{sm}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    code = compiled(source, texts, options)
    _keep(kept, code)
    return code


def compiled(source: str, texts: Mapping[str, str], options: tuple[str, ...]) -> bytes:
    """The machine code of `<source>.cu` of these texts. Raises EngineError with what the compiler says."""
    nvrtc, name = _nvrtc(), f"{source}.cu"
    headers = {other: text for other, text in texts.items() if other.endswith(".cuh")}
    program = _call(
        nvrtc.nvrtcCreateProgram, texts[name].encode(), name.encode(), len(headers),
        [text.encode() for text in headers.values()], [other.encode() for other in headers],
    )  # fmt: skip
    try:
        told = [option.encode() for option in options]
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(told), told)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _read(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).rstrip(b"\0 \n")
            raise EngineError(f"{name} does not compile for {' '.join(options)}:\n{log.decode(errors='replace')}")
        return _read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _keep(path: Path, code: bytes) -> None:
    """Whole or not at all: others may read the folder, or write the same file, meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(code)
    Path(file.name).replace(path)


def _digest(texts: Mapping[str, str], options: tuple[str, ...]) -> str:
    major, minor = _call(_nvrtc().nvrtcVersion)
    found = hashlib.sha256(repr((sorted(texts.items()), options, major, minor)).encode())
    return found.hexdigest()[:16]


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the library is looked for now
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            "kernels of the GPU are compiled by NVRTC, which is not here: install bitserve[gpu] or bitserve[rtx]"
        ) from error
    return nvrtc


def _call(function: Any, *arguments: Any) -> Any:
    status, *found = function(*arguments)
    if status.value:
        raise EngineError(f"{function.__name__}: {status.name}")
    return found[0] if len(found) == 1 else tuple(found)


def _read(program: Any, size_of: Any, fill: Any) -> bytes:
    buffer = bytes(_call(size_of, program))  # written in place: the bindings ask for bytes, these are nobody else's
    _call(fill, program, buffer)
    return buffer
