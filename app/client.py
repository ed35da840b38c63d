"""What `bitserve infer` sends: inputs from files or JSON, in the model's own datatypes."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.http.tensors import bytes_of
from engines.tensor import DataType, datatype

__all__ = ["Mistake", "call_model", "load_inputs"]


class Mistake(Exception):
    """Something on the command line; the message says what was expected."""


def load_inputs(arguments: Sequence[str], metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by input name, in the model's datatypes. What lacks the leading dimension is one row. Raises Mistake.

    An argument is NAME=FILE.npy, NAME=FILE.npz, NAME=FILE.json, NAME=JSON, FILE.npz or FILE.json; the name of an only
    input may be left out. FILE.json is a value, values by input name, or a request of the protocol.
    """
    try:
        specs = {spec["name"]: {**spec, "shape": [*spec["shape"]]} for spec in metadata["inputs"]}
        kinds = {name: datatype(spec["datatype"]) for name, spec in specs.items()}
    except (TypeError, KeyError) as error:
        raise Mistake("the answer does not describe a model; is it a bitserve server?") from error
    arrays: dict[str, np.ndarray] = {}
    for argument in arguments:
        for name, array in _load(argument, list(specs)).items():
            if name in arrays:
                raise Mistake(f"--input {argument[:60]}: there is a value for input {name!r} already")
            arrays[name] = array
    missing, extra = [n for n in specs if n not in arrays], [n for n in arrays if n not in specs]
    takes = ", ".join(f"{n} {spec['datatype']} {spec['shape']}" for n, spec in specs.items())
    if extra:
        raise Mistake(f"the model has no input {extra[0]!r}; it takes {takes}")
    if missing:
        raise Mistake(f"no value for input {missing[0]!r}; the model takes {takes}; give --input {missing[0]}=FILE.npy")
    return {name: _fit(_cast(arrays[name], name, kinds[name]), spec["shape"]) for name, spec in specs.items()}


def _load(argument: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    name, separator, value = argument.partition("=")
    if not separator or (name not in names and _is_json(argument)):
        name, value = "", argument
    only = names[0] if len(names) == 1 else ""
    try:
        loaded = np.array(json.loads(value)) if _is_json(value) else _read(Path(value))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RecursionError) as error:
        why = "no .npy or .npz file of plain arrays" if "pickle" in str(error) else error
        raise Mistake(f"--input {argument[:60]}: {why}") from error
    if isinstance(loaded, dict):
        if not name:
            return loaded
        if name not in loaded:
            raise Mistake(f"--input {argument[:60]}: the file holds {', '.join(loaded)}, and no {name!r}")
        return {name: loaded[name]}
    if not (name or only):
        raise Mistake(f"--input {argument[:60]}: expected NAME=..., where NAME is one of {', '.join(names)}")
    return {name or only: loaded}


def _read(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, the arrays of a .npz file by name, or either of a .json file."""
    if path.suffix.lower() == ".json":
        return _of_json(json.loads(path.read_bytes()))
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            return {key: loaded[key] for key in loaded.files}
        array: np.ndarray = loaded
        return array


def _of_json(document: Any) -> np.ndarray | dict[str, np.ndarray]:
    if not isinstance(document, dict):
        return np.array(document)
    if isinstance(document.get("inputs"), list):
        try:
            return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in document["inputs"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"a request's inputs need name, shape and data: {error}") from error
    return {name: np.array(value) for name, value in document.items()}


def _is_json(value: str) -> bool:
    """Whether a value stands for itself and not for a file: a list, a number, true, false or a quoted text."""
    text = value.strip()
    if text.startswith(("[", '"')):
        return True
    try:
        return isinstance(json.loads(text), (int, float))
    except (ValueError, RecursionError):
        return False


def _fit(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """With the leading dimension that a single row lacks."""
    if array.ndim == 0 and shape and all(size in (-1, 1) for size in shape):
        return array.reshape((1,) * len(shape))
    return array[np.newaxis] if array.ndim == len(shape) - 1 else array


def _cast(array: np.ndarray, name: str, kind: DataType) -> np.ndarray:
    """In the model's datatype. Raises Mistake where a value would be lost by it."""
    wrong = f"input {name!r} is {array.dtype}, the model takes {kind.name}"
    if kind.name == "BYTES":
        if array.dtype.kind not in "SU":
            raise Mistake(wrong)
        texts = np.empty(array.size, np.object_)
        texts[:] = [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel()]
        return texts.reshape(array.shape)
    if array.dtype == kind.numpy:
        return array
    if array.dtype.kind not in "biuf":
        raise Mistake(wrong)
    with np.errstate(all="ignore"):
        cast = array.astype(kind.numpy)
        lost = np.isfinite(array) & ~np.isfinite(cast) if kind.is_float else cast != array
    if np.any(lost):
        raise Mistake(f"{wrong}, which cannot hold {array[lost].ravel()[0]!s}")
    return cast


def call_model(
    ask: Callable[..., Any], path: str, metadata: dict[str, Any], arrays: dict[str, np.ndarray], classes: int,
    *, progress: bool,
) -> Any:  # fmt: skip
    """Send the call (tensors as bytes) and return the JSON answer; a spinner on stderr while it runs."""
    parts = [bytes_of(array) for array in arrays.values()]
    request: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "datatype": next(s["datatype"] for s in metadata["inputs"] if s["name"] == name),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(part)},
            }
            for (name, array), part in zip(arrays.items(), parts, strict=True)
        ]
    }
    if classes:
        request["outputs"] = [
            {"name": spec["name"], "parameters": {"classification": classes}} for spec in metadata["outputs"]
        ]
    head = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    if not progress:
        return ask("POST", f"{path}/infer", content=head + b"".join(parts), headers=headers)
    from rich.console import Console

    with Console(stderr=True).status(f"asking {metadata['name']}"):
        return ask("POST", f"{path}/infer", content=head + b"".join(parts), headers=headers)
