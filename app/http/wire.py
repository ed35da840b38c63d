"""The JSON of an inference call, as types: what is decoded is what `/docs` shows."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["InferRequest", "InferResponse", "RequestInput", "RequestOutput", "ResponseOutput"]

Parameters = dict[str, str | int | float | bool]
Size = Annotated[int, msgspec.Meta(ge=0)]


class RequestInput(msgspec.Struct):
    """One input: `data` (flat or nested, row-major) or the parameter `binary_data_size`, exactly one of them."""

    name: str
    shape: list[Size]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class RequestOutput(msgspec.Struct):
    """One wanted output. Parameters: `binary_data` (bool), `classification` (int, best k classes)."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct):
    """An inference call. Parameters: `priority`, `timeout` (us), `binary_data_output` (bool); others are ignored.

    No `outputs` means all of them; unknown keys are ignored.
    """

    inputs: list[RequestInput]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[RequestOutput] | None = None


class ResponseOutput(msgspec.Struct, omit_defaults=True):
    """One output: `data`, or the parameter `binary_data_size` where its bytes follow the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int] | None = None
    data: msgspec.Raw | list[float] | list[int] | list[bool] | list[str] | None = None


class InferResponse(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The answer; `id` is there if the request had one."""

    id: str = ""
    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
