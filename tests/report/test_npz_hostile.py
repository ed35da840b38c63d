"""npz files that were made to hurt: each is refused with its own reason, before much of it is read."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import ModelRefused
from engines.npz import read_samples
from engines.tensor import TensorSpec

X = TensorSpec("x", "FP32", (-1, 3))
DATA = np.arange(12, dtype=np.float32).reshape(4, 3)


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pickle_was_run"),)


def npy(shape: str = "(4, 3)", descr: str = "'<f4'", order: str = "False", data: bytes = DATA.tobytes()) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def zipped(content: bytes = npy(), name: str = "x.npy", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def patched(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    start = data.rindex(marker) + offset
    return data[:start] + value + data[start + len(value) :]


def objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Boom()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", npy())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", npy())
    return buffer.getvalue()


def crowded() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(300):
            archive.writestr(f"{number}.npy", b"")
    return buffer.getvalue()


def commented() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", npy())
        archive.comment = b"hello"
    return buffer.getvalue()


CENTRAL, END = b"PK\1\2", b"PK\5\6"
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "an array of objects": (objects, "holds Python objects"),
    "a pickle": (lambda: pickle.dumps(Boom()), "does not end as a zip file"),
    "a pickle in the zip": (lambda: zipped(pickle.dumps(Boom()), "data.pkl"), "it holds 'data.pkl'; expected arrays"),
    "a pickle by the name of an array": (lambda: zipped(pickle.dumps([Boom()] * 9)), "'x' is not an npy array"),
    "an empty file": (lambda: b"", "does not end as a zip file"),
    "a lone npy": (npy, "does not end as a zip file"),
    "a zip cut off": (lambda: zipped()[:-30], "does not end as a zip file"),
    "a comment": (commented, "does not end as a zip file without a comment"),
    "data cut off": (lambda: zipped(npy(data=DATA.tobytes()[:-4])), "has 44 bytes of data; its shape .* needs 48"),
    "data that go on": (lambda: zipped(npy(data=bytes(4000))), "has 4000 bytes of data; its shape .* needs 48"),
    "a flipped byte": (lambda: patched(zipped(), DATA.tobytes(), 20, b"\x55"), "Bad CRC-32"),
    "a bomb by its own word": (lambda: patched(zipped(), CENTRAL, 24, struct.pack("<L", 2**31)), "it unpacks to"),
    "a bomb that lies": (
        lambda: patched(zipped(npy(data=bytes(2**24)), compression=8), CENTRAL, 24, struct.pack("<L", 60 + 68)),
        "Bad CRC-32",
    ),
    "a shape beyond memory": (lambda: zipped(npy(f"({10**30}, 3)")), "its shape .* needs"),
    "a shape beyond any file": (lambda: zipped(npy(f"({2**62}, 0)", data=b"")), "expected"),
    "a negative shape": (lambda: zipped(npy("(-4, -3)")), "has shape"),
    "a shape of truths": (lambda: zipped(npy("(True, 12)")), "has shape"),
    "a shape that is no tuple": (lambda: zipped(npy("'43'")), "has shape"),
    "many dimensions": (lambda: zipped(npy("(" + "1," * 30 + ")", data=bytes(4))), "expected 1 to 16 sizes"),
    "a type of types": (lambda: zipped(npy(descr="[('a', '<f4')]")), "has elements"),
    "a type that repeats": (lambda: zipped(npy(descr="'(999999999,)f4'")), "has elements"),
    "void": (lambda: zipped(npy(descr="'|V99'")), "has elements"),
    "a header that calls": (lambda: zipped(npy("__import__('os').getcwd()")), "the header of 'x' cannot be read"),
    "a deep header": (lambda: zipped(npy("(" * 900 + ")" * 900)), "the header of 'x' cannot be read"),
    "a header without keys": (lambda: zipped(b"\x93NUMPY\1\0\x02\0{}"), "the header of 'x' cannot be read"),
    "a header of a gigabyte": (lambda: zipped(b"\x93NUMPY\2\0" + struct.pack("<L", 2**30)), "has a header of 10737"),
    "a version to come": (lambda: zipped(b"\x93NUMPY\x09\0" + bytes(100)), "is not an npy array"),
    "two of one name": (twice, "two arrays of one name"),
    "entries without end": (crowded, "it lists 300 entries"),
    "a directory without end": (lambda: patched(zipped(), END, 12, struct.pack("<L", 2**31)), "it lists 1 entries in"),
    "another packing": (lambda: zipped(compression=zipfile.ZIP_BZIP2), "is encrypted or packed in another way"),
    "encrypted": (lambda: patched(zipped(), CENTRAL, 8, b"\1\0"), "is encrypted or packed in another way"),
    "a name of a path": (lambda: zipped(name="../x.npy"), r"it has the arrays \['../x'\]"),
    "zip64": (
        lambda: zipped()[:-22] + b"PK\6\7" + bytes(16) + zipped()[-22:],
        "it is a zip64 archive",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_and_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, reason = ATTACKS[name]
    path = tmp_path / "samples.npz"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(ModelRefused, match=f"^samples.npz: .*{reason}") as refused:
            read_samples(path, [X], with_truth=False)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert str(tmp_path) not in str(refused.value)
    assert not Path("pickle_was_run").exists()


def test_any_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=DATA)
    whole, path = buffer.getvalue(), tmp_path / "samples.npz"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.1 else data)
        try:
            found = [sample.inputs["x"].tolist() for sample in read_samples(path, [X], with_truth=False)]
        except ModelRefused:
            refused += 1
        else:
            assert found == DATA[:, None].tolist()
    assert refused > 500
