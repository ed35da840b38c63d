"""What `bitserve infer` sends: inputs from files or JSON, in the model's own datatypes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.tensor import datatype

__all__ = ["Mistake", "call_model", "load_inputs"]


class Mistake(Exception):
    """Something on the command line; the message says what was expected."""


def load_inputs(arguments: Sequence[str], metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by input name. An array without a batch dimension is one row. Raises Mistake."""
    arrays: dict[str, np.ndarray] = {}
    for argument in arguments:
        arrays.update(_load(argument))
    specs = {spec["name"]: spec for spec in metadata["inputs"]}
    missing, extra = [n for n in specs if n not in arrays], [n for n in arrays if n not in specs]
    if missing:
        takes = ", ".join(f"{n} {spec['datatype']} {spec['shape']}" for n, spec in specs.items())
        raise Mistake(f"no value for input {missing[0]!r}; the model takes {takes}; give --input {missing[0]}=FILE.npy")
    if extra:
        raise Mistake(f"the model has no input {extra[0]!r}; it takes {', '.join(specs)}")
    return {name: _fit(arrays[name], spec) for name, spec in specs.items()}


def _load(argument: str) -> dict[str, np.ndarray]:
    name, separator, value = argument.partition("=")
    source = value if separator else argument
    try:
        if (separator and value.lstrip().startswith(("[", "-"))) or value.strip().isdigit():
            return {name: np.array(json.loads(value))}
        if source.endswith(".npz"):
            with np.load(Path(source), allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        if separator:
            return {name: np.load(Path(source), allow_pickle=False)}
    except (OSError, ValueError) as error:
        raise Mistake(f"--input {argument[:60]}: {error}") from error
    raise Mistake(f"--input {argument[:60]}: expected NAME=FILE.npy, FILE.npz, or NAME=[...]")


def _fit(array: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    if array.ndim == len(spec["shape"]) - 1:
        array = array[np.newaxis]
    try:
        return array.astype(
            datatype(spec["datatype"]).numpy, casting="same_kind" if array.dtype.kind != "i" else "unsafe"
        )
    except TypeError as error:
        raise Mistake(f"input {spec['name']!r} has {array.dtype}, the model takes {spec['datatype']}") from error


def call_model(
    ask: Callable[..., Any], path: str, metadata: dict[str, Any], arrays: dict[str, np.ndarray], classes: int,
    *, progress: bool,
) -> Any:  # fmt: skip
    """Send the call (tensors as bytes) and return the JSON answer; a spinner on stderr while it runs."""
    parts = [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
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
