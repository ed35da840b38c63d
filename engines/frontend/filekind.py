"""Tell by its first bytes what an uploaded file is, where that is not ONNX. Nothing is unpacked or executed."""

from __future__ import annotations

import io
import zipfile

__all__ = ["kind_of"]

_PICKLE_PROTOCOLS = range(6)
_PLAN = "a TensorRT engine, which is native code: send the model that it was built from"
_STARTS = (
    (b"ptrt", _PLAN),
    (b"ftrt", _PLAN),
    (b"vtrt", _PLAN),  # of TensorRT-RTX
    (b"RR_UPCVO", "a compiled OpenVINO blob, which whoever loads it has to trust: send the model it was built from"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras): export it to ONNX, with tf2onnx for example"),
    (b"\x1f\x8b", "compressed with gzip: send it uncompressed"),
    (b"BZh", "compressed with bzip2: send it uncompressed"),
    (b"\xfd7zXZ", "compressed with xz: send it uncompressed"),
    (b"<?xml", "XML (an OpenVINO model?): send the ONNX model that it was made from"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` and send the file itself"),
    (b"\x7fELF", "a program or a shared library"),
    (b"MZ", "a program or a shared library"),
    (b"#!", "a script"),
    (b"tree\n", "a LightGBM text model"),
    (b"{", "JSON"),
    (b"binf", "an XGBoost binary model"),
)
_PICKLE_OPCODES = (b"(", b"]", b"}", b"c", b"I", b"S", b"V", b"F")


def kind_of(data: bytes) -> str:
    """What the file is, in words for a message, or nothing where it may be ONNX."""
    if data[:4] == b"PK\x03\x04":
        return _zip_kind(data)
    if data[4:8] == b"TFL3":
        return "a TensorFlow Lite model: export the original to ONNX"
    if len(data) > 1 and data[0] == 0x80 and data[1] in _PICKLE_PROTOCOLS and data[-1:] == b".":
        return "a Python pickle, which runs code when it is read; it was not read"
    if data[:1] in _PICKLE_OPCODES and data.rstrip()[-1:] == b"." and b"\n" in data[:256]:
        return "a Python pickle, which runs code when it is read; it was not read"
    if len(data) > 9 and int.from_bytes(data[:8], "little") < len(data) and data[8:9] == b"{":
        return "a safetensors file, which holds weights without a graph: export the model to ONNX"
    return next((words for start, words in _STARTS if data.startswith(start)), "")


def _zip_kind(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except Exception:
        return "a damaged zip archive"
    if any(name.endswith((".pkl", ".pickle", ".pt", ".pth")) for name in names):
        return "a zip archive with a Python pickle in it (a PyTorch checkpoint?); export the model to ONNX"
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (npz)"
    return "a zip archive: send the ONNX file itself"
