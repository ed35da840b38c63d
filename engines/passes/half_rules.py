"""What is known of operators in half precision (FP16: 11 bits, 6.1e-5 to 65504, steps of 6e-8 below that). Data only.

What is in none of these tables is cheap: it runs in half where that saves a conversion, see
`engines.passes.half_choice`.
"""

from __future__ import annotations

__all__ = [
    "CARRIERS", "COMPARISONS", "EXACT", "FLOAT_INPUTS", "KEPT", "OVERFLOW", "RECURRENT", "SMALLEST_NORMAL", "UNDERFLOW",
    "WEIGHTED",
]  # fmt: skip

OVERFLOW = 65520.0
"""The first number that rounds to infinity: half way between 65504 and 65536, where ties go to even."""
SMALLEST_NORMAL = 2.0**-14
"""Below, a relative error of 2**-11 can no longer be kept."""
UNDERFLOW = 2.0**-25
"""The last number that rounds to 0, half of the smallest one."""

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}) | RECURRENT
"""Where time and bytes go: these are run in half for their own sake."""

COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

_MOVERS = frozenset(
    {
        "CastLike", "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "Identity", "OneHot", "Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
EXACT = _MOVERS | frozenset(
    {
        "Abs", "Clip", "GlobalMaxPool", "Hardmax", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu",
        "Sign", "TopK",
    }
)  # fmt: skip
"""Of numbers that half holds, these make numbers that half holds: nothing is rounded."""
CARRIERS = (_MOVERS - {"OneHot"}) | frozenset({"Abs", "Add", "Max", "Mul", "Neg", "Relu", "Sub", "Sum"})
"""What these make is as large as what they read: a mask of -3e38 goes through them."""

FLOAT_INPUTS = {"Resize": frozenset({1})}
"""Positions of inputs that may be half, but are coordinates: they stay as they are."""

_EXPONENTIAL = "exponentials: e**11.1 is infinite in half"
_SUM = "a sum of many terms: it may pass 65504, and small terms are lost in it"
_NORM = "it divides by a size that may be near 0, from squares that may pass 65504"
_NEAR_ZERO = "it tells small arguments apart that half does not"
_POWER = "256 squared is infinite in half"
_ANGLE = "from 1024 on half has no fractions, so no angle"
_COMPARISON = "rounding makes numbers equal, or turns their order"
_STEP = "a small error moves its result by a whole step"
_PIXELS = "it reads coordinates: from 2048 on half leaves numbers out"
_COUNT = "it counts: from 2048 on half leaves numbers out"
KEPT = {
    **dict.fromkeys(
        ("Attention", "Cosh", "Exp", "LogSoftmax", "NegativeLogLikelihoodLoss", "Sinh", "Softmax",
         "SoftmaxCrossEntropyLoss", "Softplus"), _EXPONENTIAL),
    **dict.fromkeys(
        ("CumSum", "DFT", "Det", "GlobalAveragePool", "GlobalLpPool", "LpPool", "Mean", "ReduceL1", "ReduceL2",
         "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "STFT"), _SUM),
    **dict.fromkeys(
        ("GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization",
         "MeanVarianceNormalization", "RMSNormalization", "Reciprocal"), _NORM),
    **dict.fromkeys(("Acosh", "Atanh", "Log", "Sqrt"), _NEAR_ZERO),
    **dict.fromkeys(("Cos", "RotaryEmbedding", "Sin", "Tan"), _ANGLE),
    **dict.fromkeys(COMPARISONS, _COMPARISON),
    **dict.fromkeys(("Ceil", "Floor", "Mod", "Round"), _STEP),
    **dict.fromkeys(("AffineGrid", "DeformConv", "GridSample", "MaxRoiPool", "RoiAlign"), _PIXELS),
    "Pow": _POWER,
    "Range": _COUNT,
}  # fmt: skip
"""Operators that stay in FP32 wherever they stand, and why. Each reads and writes FP32, and is given FP32 constants."""
