"""The requests of a load, as bytes: inputs drawn in the model's datatypes and shapes, other values for each request.

Values are windows of one drawn array per input, each request's one element further on: as different as drawn anew, at
the memory of one request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from app.bench.connection import Pieces
from app.bench.inputs import CannotDraw, draw
from app.tune.errors import TuneFailed
from engines.repository import Manifest
from engines.tensor import TensorSpec

__all__ = ["Requests"]

_WINDOWS = 65536


class Requests:
    """Complete HTTP requests to one version, `count` different ones of each number of rows.

    TuneFailed where the model takes what cannot be drawn, or more than one row where its rows were not proven apart.
    """

    def __init__(
        self, model: str, version: int, manifest: Manifest, rows: Sequence[int], count: int, seed: int
    ) -> None:
        largest = max(rows)
        if largest > 1 and not manifest.proof.batchable:
            raise TuneFailed(
                f"{model!r} is not batched ({manifest.proof.reason}), a request is one row; the load has {largest}"
            )
        self.rows = rows
        self._path = f"/v2/models/{model}/versions/{version}/infer"
        self._manifest, self._windows = manifest, max(1, min(count, _WINDOWS))
        rng = np.random.default_rng(seed)
        self._drawn = [
            (spec, _draw(rng, spec, self._elements(spec, largest) + self._windows)) for spec in manifest.inputs
        ]
        self._heads: dict[int, bytes] = {}

    def pieces(self, index: int) -> Pieces:
        """The request number `index`: its head, then the bytes of each input."""
        rows = self.rows[index % len(self.rows)]
        head = self._heads.get(rows)
        if head is None:
            head = self._heads[rows] = self._head(rows)
        at = index % self._windows
        parts: list[bytes | memoryview] = [head]
        for spec, (item_bytes, data) in self._drawn:
            parts.append(data[at * item_bytes : (at + self._elements(spec, rows)) * item_bytes])
        return parts

    def _shape(self, spec: TensorSpec, rows: int) -> tuple[int, ...]:
        shape = self._manifest.sample_shapes[spec.name]
        return tuple(rows if axis == spec.batch_axis else size for axis, size in enumerate(shape))

    def _elements(self, spec: TensorSpec, rows: int) -> int:
        return int(np.prod(self._shape(spec, rows), dtype=np.int64))

    def _head(self, rows: int) -> bytes:
        inputs, total = [], 0
        for spec, (item_bytes, _) in self._drawn:
            size = self._elements(spec, rows) * item_bytes
            total += size
            inputs.append(
                {
                    "name": spec.name, "datatype": spec.datatype, "shape": list(self._shape(spec, rows)),
                    "parameters": {"binary_data_size": size},
                }
            )  # fmt: skip
        said = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        lines = (
            f"POST {self._path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/octet-stream",
            f"Inference-Header-Content-Length: {len(said)}", f"Content-Length: {len(said) + total}", "", "",
        )  # fmt: skip
        return "\r\n".join(lines).encode() + said


def _draw(rng: np.random.Generator, spec: TensorSpec, count: int) -> tuple[int, memoryview]:
    """(bytes an element, the bytes of `count` elements)."""
    try:
        values = draw(rng, spec, count)
    except CannotDraw as error:
        raise TuneFailed(str(error)) from error
    return values.dtype.itemsize, values.view(np.uint8).data
