"""README's plans for GPUs are made as it shows."""

from __future__ import annotations

from pathlib import Path

from tests.support.servers import running
from tests.test_readme import ROOT, example, run_example


def test_a_plan_is_made_as_readme_shows(tmp_path: Path) -> None:
    made = ROOT / "calibration.npz"
    try:
        with running(tmp_path) as started:
            run_example("fewer", started)  # which makes the samples
            assert run_example("everywhere", started) == example("everywhere")[3]
    finally:
        made.unlink(missing_ok=True)


def test_plans_with_binary_layers_are_made_as_readme_shows(tmp_path: Path) -> None:
    with running(tmp_path) as started:
        assert run_example("bits", started) == example("bits")[3]
