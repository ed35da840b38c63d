"""Count what a protobuf file would become, without parsing it: a bomb of a few MiB can ask for gigabytes of objects.

Every length-delimited field is either a message, or bytes, or a string, and the wire does not say which. ONNX's own
schema does, so the walk follows the fields that hold messages (onnx.proto, by number) and skips the rest.
"""

from __future__ import annotations

__all__ = ["count_messages"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100
"""What protobuf's own parser accepts."""
_SCHEMA: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "leaf", 14: "leaf", 20: "training", 25: "function", 26: "leaf"},
    "training": {1: "graph", 2: "graph", 3: "leaf", 4: "leaf"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "leaf", 15: "sparse", 16: "leaf"},
    "node": {1: "text", 2: "text", 5: "attribute", 9: "leaf", 10: "leaf"},
    "attribute": {
        5: "tensor", 6: "graph", 9: "text", 10: "tensor", 11: "graph", 14: "type", 15: "type", 22: "sparse",
        23: "sparse",
    },
    "tensor": {6: "text", 13: "leaf", 16: "leaf"},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type", 4: "leaf"},
    "type": {1: "tensor_type", 4: "sequence", 5: "map", 8: "tensor_type", 9: "sequence"},
    "tensor_type": {2: "shape"},
    "sequence": {1: "type"},
    "map": {2: "type"},
    "shape": {1: "leaf"},
    "function": {4: "text", 5: "text", 6: "text", 7: "node", 9: "leaf", 11: "attribute", 12: "value", 14: "leaf"},
    "leaf": {},
}  # fmt: skip
"""Fields that hold messages, or strings of which there may be many, by kind of message."""


def count_messages(data: bytes, limit: int) -> int:
    """How many messages (and repeated strings) parsing would make; counting ends once `limit` is passed.

    What is not protobuf counts as far as it can be read: the parser refuses it anyway.
    """
    view = memoryview(data)
    waiting: list[tuple[int, int, str, int]] = [(0, len(data), "model", 0)]
    count = 0
    while waiting and count <= limit:
        at, end, kind, depth = waiting.pop()
        fields = _SCHEMA[kind]
        while at < end and count <= limit:
            key, at = _varint(view, at, end)
            wire = key & 7
            if wire == _BYTES:
                size, at = _varint(view, at, end)
                if at + size > end:
                    break
                inner = fields.get(key >> 3)
                if inner is not None:
                    count += 1
                    if inner != "text" and size and depth < _MAX_DEPTH:
                        waiting.append((at, at + size, inner, depth + 1))
                at += size
            elif wire == _VARINT:
                _, at = _varint(view, at, end)
            elif wire in (_FIXED32, _FIXED64):
                at += 4 if wire == _FIXED32 else 8
            else:
                break
    return count


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, end
