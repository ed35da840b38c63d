"""What TensorRT takes, checked on the graph before its parser sees it: that only warns, or means something else."""

from __future__ import annotations

import onnx

from engines.errors import ModelRefused
from engines.passes.signed import unsigned_pairs

__all__ = ["refuse_for_tensorrt"]

_MOST_NAMED = 5


def refuse_for_tensorrt(model: onnx.ModelProto) -> None:
    """Raise ModelRefused for unsigned 8-bit pairs, which the parser takes for signed ones with a warning alone, and for
    zero points other than 0, which it refuses without a name.
    """
    pairs = unsigned_pairs(model)
    if pairs:
        more = f" and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
        raise ModelRefused(
            f"TensorRT takes signed 8-bit pairs with a zero point of 0 alone; these are others: "
            f"{', '.join(pairs[:_MOST_NAMED])}{more}"
        )
