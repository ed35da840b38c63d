"""The stages of a build, timed: one that several engines pass in turn counts each time."""

from __future__ import annotations

import pytest

from engines import clock


def test_a_stage_that_comes_again_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 0.0, 2.0, 3.0, 7.0])
    monkeypatch.setattr(clock.time, "monotonic", lambda: next(moments))
    told: list[tuple[str, float]] = []
    watch = clock.Clock(lambda stage, share: told.append((stage, share)))
    for stage in ("prove", "check", "prove", "publish"):
        watch.begin(stage)
    assert watch.stages_s == {"prove": 6.0, "check": 1.0}
    watch.advance(0.5)
    assert told == [("prove", 0), ("check", 0), ("prove", 0), ("publish", 0), ("publish", 0.5)]
