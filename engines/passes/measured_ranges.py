"""Measure what several of NNCF's pipelines want to know of a model, each sample run once. Changes no graph.

NNCF's aggregator for ONNX measures a tensor anew for each algorithm that asks, and weights anew with each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["collect_together"]


def collect_together(points: Sequence[Any], model: onnx.ModelProto, graph: Any, samples: Any) -> Any:
    """The statistics for `run_step` of each pipeline whose statistic points these are; `samples` is an
    `nncf.Dataset`.
    """
    from nncf.common.graph.transformations.commands import TargetType
    from nncf.common.tensor_statistics.collectors import MergedTensorCollector
    from nncf.common.tensor_statistics.statistic_point import StatisticPoint, StatisticPointsContainer
    from nncf.onnx.statistics.aggregator import ONNXStatisticsAggregator

    class Together(ONNXStatisticsAggregator):  # type: ignore[misc]
        @staticmethod
        def _get_merged_statistic_points(wanted: Any, model: Any, graph: Any) -> Any:
            """One collector for each place, which shares what it measures with all that asked."""
            merged = StatisticPointsContainer()
            for at_node in wanted.values():
                for point in at_node:
                    asking = [one for each in point.algorithm_to_tensor_collectors.values() for one in each]
                    merged.add_statistic_point(
                        StatisticPoint(point.target_point, MergedTensorCollector(asking), "merged")
                    )
            return merged

        def _register_statistics(self, outputs: Any, wanted: Any) -> None:
            super()._register_statistics(outputs, wanted)
            for _, point, collector in wanted.get_tensor_collectors():
                if point.target_point.type == TargetType.OPERATION_WITH_WEIGHTS:
                    collector.disable()  # weights are the same with the next sample

    aggregator = Together(samples)
    for container in points:
        aggregator.register_statistic_points(container)
    aggregator.collect_statistics(model, graph)
    return aggregator.statistic_points
