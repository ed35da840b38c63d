"""Reports of searches, made from a measured one: engines that lose and cost what a test says."""

from __future__ import annotations

import msgspec

from engines.report import Candidate, Report

LAYERS = ("/conv1/Conv", "/head/Gemm")


def int8(report: Report, name: str, loss: float | None, rows_per_s: float | None, **changes: object) -> Candidate:
    """An INT8 engine of the same samples: one row takes 1 / `rows_per_s`, a candidate without has not been timed."""
    latency_us = None if rows_per_s is None else 1e6 / rows_per_s
    made = msgspec.structs.replace(
        report.candidates[0], name=name, precision="int8", loss=loss, interval=None, decisions_changed=3,
        rows_per_s=rows_per_s, latency_us=latency_us, size_bytes=2**17, on_front=False, int8_layers=7,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def trial(report: Report, number: int, loss: float, rows_per_s: float, *, passed: bool = True) -> Candidate:
    """One of many."""
    return int8(
        report, f"mixed (trial {number})", loss, rows_per_s, precision="mixed", trial=True, samples=32, passed=passed,
        reason="" if passed else "a loss that is too large",
    )  # fmt: skip


def searched(report: Report, *more: Candidate, chosen: str = "mixed") -> Report:
    """FP32, an INT8 engine that loses too much, a mixed one on the front, and `more`."""
    tried = (
        msgspec.structs.replace(report.candidates[0], loss=0.0, rows_per_s=1000.0, latency_us=1000.0),
        int8(report, "int8", 0.2, None, passed=False, reason="a loss of 0.2, 0.01 allowed"),
        int8(report, "mixed", 0.004, 2500.0, precision="mixed", on_front=True, int8_layers=5, float_layers=LAYERS),
        *more,
    )
    return msgspec.structs.replace(report, candidates=tried, chosen=chosen, budget=0.01)
