"""What most tests of the runtime begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulated.gpu import SimulatedGpu


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu]:
    """No rule of it may be broken, and nothing of it held in the end."""
    made = SimulatedGpu()
    yield made
    assert (made.broken, made.held()) == ([], {})
