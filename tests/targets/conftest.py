from __future__ import annotations

import pytest

from tests.packaged import DatasetMissing
from tests.support.tensorrt_surface import LIBRARIES, Surface, surface_of


@pytest.fixture(scope="session")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Surface]:
    """What the real TensorRT and TensorRT-RTX offer in Python, by their targets."""
    folder = tmp_path_factory.mktemp("bindings")
    try:
        return {library: surface_of(library, folder) for library in LIBRARIES}
    except DatasetMissing as missing:
        pytest.skip(str(missing))
