"""The operators of binary layers as plugins of a GPU: what each reads and makes, and the kernel that it launches.

They are those of `engines.plugins.ops`, with weights laid out for the kernels (`engines.plugins.cuda.layout`), the
prefix sums of taps beside them, and floats that may be FP16. Knows no TensorRT: sizes may be numbers, or anything that
adds, subtracts and divides like them.

    BinaryPack         x FP32 or FP16, thresholds FP32                                                -> INT32
    BinaryConv2d       bits, weights, sums INT32, multiplier, bias, activation FP32                   -> FP32 or FP16
    BinaryThreshold2d  bits, weights, sums, thresholds, flips INT32                                   -> INT32
    BinaryGemm, BinaryThreshold   the same of [rows, words]
    BinaryMaxPool      bits INT32                                                                     -> INT32
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from engines.plugins.cuda.launches import TACTICS, Launch, Tactic, convolve_launch, default_tactic, pack_launch
from engines.plugins.cuda.launches import pool_launch as _pool_launch
from engines.plugins.gpu.fields import Field, Given, read_fields
from engines.plugins.ops import WORD, ConvAttributes, GemmAttributes, PoolAttributes, places_after, words_of

__all__ = ["NAMESPACE", "OPERATORS", "VERSION", "GpuOperator", "Shape"]

NAMESPACE, VERSION = "bitserve", "1"
"""Of the plugins, as TensorRT registers them."""
Shape = Sequence[Any]
_FLOATS = ("FP32", "FP16")
_STRIDES = (Field("strides", 2), Field("dilations", 2), Field("pads", 4))
_LARGEST_STEP, _MOST_TERMS = 2**15, 2**24
"""Of strides, dilations, pads and kernels; of one sum, so that FP32 holds it."""


class GpuOperator(ABC):
    """One node. Raises ValueError where its fields are wrong, or shapes do not fit them."""

    name: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    inputs: ClassVar[tuple[tuple[str, ...], ...]]
    """Datatypes that each may have."""

    def __init__(self, given: Mapping[str, Given]) -> None:
        self.values = read_fields(self.fields, given)

    @property
    def tactics(self) -> tuple[int, ...]:
        """Numbers of the tile shapes among which TensorRT may choose by time; none where there is one way."""
        return ()

    @abstractmethod
    def datatype(self) -> str:
        """Of what it makes."""

    @abstractmethod
    def output_shape(self, shapes: Sequence[Shape]) -> list[Any]:
        """Of what it makes, from those of what it reads."""

    @abstractmethod
    def launch(self, shapes: Sequence[Sequence[int]], datatypes: Sequence[str], tactic: int) -> Launch:
        """The kernel for these shapes; `tactic` 0 is the one that a rule takes."""

    def pointers(self, inputs: Sequence[int], output: int) -> list[int]:
        """Addresses in the order of the kernel."""
        return [*inputs, output]

    @abstractmethod
    def require_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raise ValueError where these do not fit together; dimensions that are not known yet are -1."""


class BinaryPack(GpuOperator):
    name = "BinaryPack"
    fields = (Field("strict"),)
    inputs = (_FLOATS, ("FP32",))

    def __init__(self, given: Mapping[str, Given]) -> None:
        super().__init__(given)
        self._is_strict = _flag(self.values, "strict")

    def datatype(self) -> str:
        return "INT32"

    def output_shape(self, shapes: Sequence[Shape]) -> list[Any]:
        rows, channels, *places = shapes[0]
        return [rows, *places, _words(channels)]

    def launch(self, shapes: Sequence[Sequence[int]], datatypes: Sequence[str], tactic: int) -> Launch:
        return pack_launch(tuple(shapes[0]), _float(datatypes[0]), strict=self._is_strict)

    def require_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        _require_equal("thresholds", shapes[1], [shapes[0][1]])


class _Layer(GpuOperator):
    """A convolution or a product: `out` is what it makes of the whole numbers."""

    rank: ClassVar[int]

    def __init__(self, given: Mapping[str, Given]) -> None:
        super().__init__(given)
        self.own, self.kernel = self._read()
        self.out: Literal["FP32", "FP16", "BITS"] = "BITS"
        if "half" in self.values:
            self.out = "FP16" if _flag(self.values, "half") else "FP32"

    @abstractmethod
    def _read(self) -> tuple[ConvAttributes, tuple[int, int]]:
        """As a convolution, and the height and width of its weights."""

    @property
    def tactics(self) -> tuple[int, ...]:
        return tuple(tactic.number for tactic in TACTICS)

    def datatype(self) -> str:
        return "INT32" if self.out == "BITS" else self.out

    def output_shape(self, shapes: Sequence[Shape]) -> list[Any]:
        bits, filters = shapes[0], shapes[1][0]
        places = places_after(bits[1:-1], self.kernel, self.own) if self.rank == 4 else []
        return [bits[0], *places, _words(filters)] if self.out == "BITS" else [bits[0], filters, *places]

    def launch(self, shapes: Sequence[Sequence[int]], datatypes: Sequence[str], tactic: int) -> Launch:
        rows, *places, words = shapes[0]
        image = (rows, *(places or (1, 1)), words)
        columns = shapes[5][1] if self.out != "BITS" else 1
        filters = shapes[1][0]
        chosen = self._tactic(tactic, image, filters)
        return convolve_launch(image, filters, self.kernel, self.own, self.out, columns, chosen)

    def _tactic(self, number: int, image: tuple[int, ...], filters: int) -> Tactic:
        if not number:
            return default_tactic(image, filters, self.kernel, self.own)
        return next(tactic for tactic in TACTICS if tactic.number == number)

    def pointers(self, inputs: Sequence[int], output: int) -> list[int]:
        bits, weights, sums, *rest = inputs
        further = [0, 0, 0, *rest] if self.out == "BITS" else [*rest, 0, 0]
        return [bits, weights, sums, *further, output]

    def require_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        (filters, row_words), (high, wide) = shapes[1], self.kernel
        taps = high * wide * words_of(self.own.channels // self.own.group)
        _require_equal("bits", [len(shapes[0]), shapes[0][-1]], [self.rank, words_of(self.own.channels)])
        _require_equal("weights", [row_words], [(taps + 7) // 8 * 8])
        _require_equal("sums", shapes[2], [filters, high + 1, wide + 1])
        if filters % self.own.group:
            raise ValueError(f"{filters} filters do not make {self.own.group} groups")
        if self.out == "BITS":
            _require_equal("thresholds", shapes[3], [filters])
            _require_equal("flips", shapes[4], [words_of(filters)])
            return
        _require_equal("multiplier", shapes[3], [filters])
        _require_equal("bias", shapes[4], [filters])
        if tuple(shapes[5]) not in ((3, filters), (3, 1)):
            raise ValueError(f"activation has shape {list(shapes[5])}; expected [3, {filters}] or [3, 1]")


class _Convolution(_Layer):
    rank = 4

    def _read(self) -> tuple[ConvAttributes, tuple[int, int]]:
        values: dict[str, Any] = {name: value for name, value in self.values.items() if name != "half"}
        _require_steps(values)
        kernel = values.pop("kernel_shape")
        own = ConvAttributes(**values)
        _require_terms(own.channels // own.group * kernel[0] * kernel[1])
        return own, kernel


class _Product(_Layer):
    rank = 2

    def _read(self) -> tuple[ConvAttributes, tuple[int, int]]:
        values: dict[str, Any] = {name: self.values[name] for name in ("channels", "low")}
        _require_terms(values["channels"])
        return GemmAttributes(**values).as_convolution(), (1, 1)


_HALF = Field("half")
_CONVOLVING = (
    Field("channels"), Field("group"), *_STRIDES, Field("pad_value"), Field("low"), Field("kernel_shape", 2),
)  # fmt: skip
_MULTIPLYING = (Field("channels"), Field("low"))
_WHOLE, _FLOAT = (("INT32",),) * 3, (("FP32",),) * 3


class BinaryConv2d(_Convolution):
    name, fields, inputs = "BinaryConv2d", (*_CONVOLVING, _HALF), _WHOLE + _FLOAT


class BinaryThreshold2d(_Convolution):
    name, fields, inputs = "BinaryThreshold2d", _CONVOLVING, (("INT32",),) * 5


class BinaryGemm(_Product):
    name, fields, inputs = "BinaryGemm", (*_MULTIPLYING, _HALF), _WHOLE + _FLOAT


class BinaryThreshold(_Product):
    name, fields, inputs = "BinaryThreshold", _MULTIPLYING, (("INT32",),) * 5


class BinaryMaxPool(GpuOperator):
    name, fields, inputs = "BinaryMaxPool", (Field("kernel_shape", 2), *_STRIDES), (("INT32",),)

    def __init__(self, given: Mapping[str, Given]) -> None:
        super().__init__(given)
        values: dict[str, Any] = dict(self.values)
        _require_steps(values)
        self._own = PoolAttributes(**values)

    def datatype(self) -> str:
        return "INT32"

    def output_shape(self, shapes: Sequence[Shape]) -> list[Any]:
        rows, high, wide, words = shapes[0]
        return [rows, *places_after((high, wide), self._own.kernel_shape, self._own), words]

    def launch(self, shapes: Sequence[Sequence[int]], datatypes: Sequence[str], tactic: int) -> Launch:
        return _pool_launch(tuple(shapes[0]), self._own)

    def require_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        _require_equal("dimensions of bits", [len(shapes[0])], [4])


OPERATORS: tuple[type[GpuOperator], ...] = (
    BinaryPack, BinaryConv2d, BinaryThreshold2d, BinaryGemm, BinaryThreshold, BinaryMaxPool,
)  # fmt: skip


def _flag(values: Mapping[str, Any], name: str) -> bool:
    if values[name] not in (0, 1):
        raise ValueError(f"{name!r} is {values[name]}; expected 0 or 1")
    return bool(values[name])


def _float(datatype: str) -> Literal["FP32", "FP16"]:
    return "FP16" if datatype == "FP16" else "FP32"


def _words(channels: Any) -> Any:
    return (channels + WORD - 1) // WORD


def _require_steps(values: Mapping[str, Any]) -> None:
    for name in ("kernel_shape", "strides", "dilations", "pads"):
        if max(values[name]) > _LARGEST_STEP:
            raise ValueError(f"{name} {list(values[name])}; expected up to {_LARGEST_STEP}")
    if min(values["kernel_shape"]) < 1:
        raise ValueError(f"kernel_shape {list(values['kernel_shape'])}; expected sizes from 1 on")


def _require_terms(count: int) -> None:
    if count > _MOST_TERMS:
        raise ValueError(f"{count} terms in a sum; expected at most {_MOST_TERMS}, which FP32 can count")


def _require_equal(what: str, found: Sequence[int], expected: Sequence[int]) -> None:
    if len(found) != len(expected) or any(a != b for a, b in zip(found, expected, strict=True) if -1 not in (a, b)):
        raise ValueError(f"{what}: found {list(found)}, expected {list(expected)}")
