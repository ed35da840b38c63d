"""Compiled kernels are kept by their sources and their SM, and who cannot have them is told why."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from engines.errors import EngineError
from engines.plugins.cuda import cubins
from engines.plugins.cuda.cubins import compiled, cubin, options_for, sources
from engines.plugins.cuda.machine_code import resources_of


def test_a_kernel_is_compiled_once_for_its_sm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "not" / "there"
    first, other = cubin("pool", 80, folder), cubin("pool", 90, folder)
    assert first != other
    assert sorted(path.suffix for path in folder.iterdir()) == [".cubin", ".cubin"]
    monkeypatch.setattr(cubins, "compiled", lambda *_: pytest.fail("compiled again"))
    assert cubin("pool", 80, folder) == first
    assert cubin("pool", 90, folder) == other


def test_other_sources_are_another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubin("pool", 80, tmp_path)
    texts = sources()
    texts["ptx.cuh"] += "\n// changed\n"
    monkeypatch.setattr(cubins, "sources", lambda: texts)
    cubin("pool", 80, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_many_at_once_keep_one_file(tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(cubin("pool", 86, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = tmp_path.iterdir()
    assert {kept.read_bytes()} == set(found)
    assert "pool_16" in resources_of(found[0])


def test_nothing_is_kept_where_there_is_no_folder() -> None:
    assert resources_of(cubin("pool", 89, None)).keys() == {"pool_16", "pool_4"}


@pytest.mark.parametrize("sm", [75, 100, 103, 120])
def test_an_sm_that_does_not_multiply_bits_is_refused(sm: int) -> None:
    with pytest.raises(EngineError, match=f"sm_{sm} does not multiply bits .* sm_80, sm_86, sm_87, sm_89, sm_90 do"):
        cubin("pool", sm, None)


def test_what_the_compiler_says_is_told() -> None:
    texts = sources() | {"pool.cu": "this is not C++"}
    with pytest.raises(EngineError, match=r"(?s)pool\.cu does not compile for --gpu-architecture=sm_80 .*error: "):
        compiled("pool", texts, options_for(80))


def test_without_the_compiler_its_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError, match=r"install bitserve\[gpu\] or bitserve\[rtx\]"):
        compiled("pool", sources(), options_for(80))
