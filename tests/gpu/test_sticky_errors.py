"""Errors after which a process has no use of a GPU any more, as NVIDIA's bindings that are installed describe them."""

from __future__ import annotations

from cuda.bindings.driver import CUresult

from engines.runtime.pycuda_driver import STICKY


def test_what_ends_a_process_costs_the_gpu() -> None:
    said = {error.name: " ".join(str(error.__doc__).split()) for error in CUresult}
    fatal = {name for name, text in said.items() if "must be terminated and relaunched" in text}
    assert len(fatal) > 10
    assert fatal <= STICKY


def test_each_of_them_is_an_error_of_cuda() -> None:
    assert {error.name for error in CUresult} >= STICKY
