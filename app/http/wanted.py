"""How a client wants its answer; for one that asks again, what its answers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from msgspec import structs

from app.http import numbers
from app.http.wire import InferResponse

__all__ = ["Wanted"]

_MAX_FRAMES = 4
"""Of one `Wanted`: the same inputs mostly give outputs of the same shapes."""
_encoder = msgspec.json.Encoder()
_NO_DATA = msgspec.Raw(b"")
_Shapes = tuple[tuple[str, tuple[int, ...], int], ...]
"""Name, shape and bytes of each output."""
_Frame = bytes | tuple[bytes, ...]
"""The JSON of an answer: all of it where every output's bytes follow it, else what is around the lists in it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`binary_default` holds for outputs not named in `binary`; `classes`: how many of the best, by output.

    `frames`: None where the client is not known to ask again.
    """

    id: str
    binary_default: bool
    binary: Mapping[str, bool]
    classes: Mapping[str, int]
    frames: dict[_Shapes, _Frame] | None = None

    def repeated(self) -> Wanted:
        """The same, for calls to one endpoint that have it in common."""
        return replace(self, frames={})

    def answer(self, outputs: Mapping[str, np.ndarray]) -> tuple[bytes, int | None] | None:
        """A body, and the bytes of its JSON part where more follows; None unless outputs like these were kept."""
        assert self.frames is not None
        frame = self.frames.get(_shapes(outputs))
        if frame is None:
            return None
        if isinstance(frame, bytes):
            return b"".join([frame, *[array.tobytes() for array in outputs.values()]]), len(frame)
        parts = [frame[0]]
        for array, behind in zip(outputs.values(), frame[1:], strict=True):
            text = numbers.written(array)
            if text is None:
                return None
            parts += text, behind
        return b"".join(parts), None

    def keep(self, outputs: Mapping[str, np.ndarray], response: InferResponse) -> None:
        """For the next answer, where nothing but values will differ: all outputs in one form, in `response`'s order."""
        assert self.frames is not None
        plain = not self.classes and all(array.dtype != np.object_ for array in outputs.values())
        forms = {self.binary.get(name, self.binary_default) for name in outputs}
        if plain and len(forms) == 1 and len(self.frames) < _MAX_FRAMES:
            self.frames[_shapes(outputs)] = _encoder.encode(response) if True in forms else _around(response)


def _shapes(outputs: Mapping[str, np.ndarray]) -> _Shapes:
    return tuple([(name, array.shape, array.nbytes) for name, array in outputs.items()])


def _around(response: InferResponse) -> tuple[bytes, ...]:
    """The JSON before, between and behind the lists of its outputs. Within a string a quote has a backslash."""
    empty = [structs.replace(output, data=_NO_DATA) for output in response.outputs]
    before, *behind = _encoder.encode(structs.replace(response, outputs=empty)).split(b'"data":}')
    return b'%b"data":' % before, *(b'}%b"data":' % between for between in behind[:-1]), b"}%b" % behind[-1]
