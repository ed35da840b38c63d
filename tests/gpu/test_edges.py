"""The edges of the shapes, as the host's kernels run them, by plugins on a GPU, and layers of real networks. A GPU has
not run this yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gpu.device import Gpu
from tests.gpu.layers import PluginLayers
from tests.gpu.plugins import Plugins
from tests.plugins.cuda import test_on_host as edges
from tests.plugins.cuda.test_on_host import check
from tests.plugins.test_kernels import layer


@pytest.fixture(params=["gpu"])
def layers(gpu: Gpu) -> Iterator[PluginLayers]:
    with Plugins(gpu) as plugins:
        yield PluginLayers(plugins)
    assert plugins.refused == []


@pytest.mark.parametrize(("size", "channels"), [(56, 64), (28, 128), (14, 256), (7, 512)])
@pytest.mark.parametrize("rows", [1, 8])
def test_layers_of_real_networks(layers: PluginLayers, size: int, channels: int, rows: int) -> None:
    given = layer(channels, channels, (size, size), rows=rows, pads=(1, 1, 1, 1))
    check(layers, *given, columns=channels)  # type: ignore[arg-type]


# all but those of pads far beyond what a plugin takes
test_channels_off_the_word = edges.test_channels_off_the_word
test_every_length_of_a_sum = edges.test_every_length_of_a_sum
test_windows_of_few_and_of_many_steps = edges.test_windows_of_few_and_of_many_steps
test_borders_strides_and_dilations = edges.test_borders_strides_and_dilations
test_the_widest_windows = edges.test_the_widest_windows
test_groups = edges.test_groups
test_sums_that_are_as_large_as_they_can_be = edges.test_sums_that_are_as_large_as_they_can_be
test_random_layers = edges.test_random_layers
test_orders = edges.test_orders
test_products = edges.test_products
test_floats_beyond_the_largest_half_and_none_at_all = edges.test_floats_beyond_the_largest_half_and_none_at_all
test_packing = edges.test_packing
test_pools = edges.test_pools
test_more_images_than_a_grid_has_blocks = edges.test_more_images_than_a_grid_has_blocks
