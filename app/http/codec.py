"""A request body to a call, outputs to a response body: JSON, the binary extension, raw bodies, classification."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from app.http import tensors
from app.http.bodies import Body
from app.http.errors import BadRequest
from app.http.longlist import take_long_list
from app.http.wanted import Wanted
from app.http.wire import InferRequest, InferResponse, RequestInput, RequestOutput, ResponseOutput
from app.http.workers import INLINE_BYTES
from app.serving.fitting import Call, InputTensor, Served
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = ["decode", "encode", "encoding_takes_long", "json_length", "takes_long"]

_decoder = msgspec.json.Decoder(InferRequest)
_encoder = msgspec.json.Encoder()
_MAX_CLASSES = 65536
"""Of all rows of an output together: each is written as a string, on the event loop."""
_ENCODE_INLINE_BYTES = 262_144
"""Of arrays that become JSON: some milliseconds."""
_SPARE = 16
"""Inputs or outputs more than the model has, up to which a request is looked at: what is wrong can be named then."""
_MAX_PARAMETERS = 256
_JSON_CONSTANTS = (b"NaN", b"Infinity")
_DIGITS = frozenset(b"0123456789")


def takes_long(body: Body, header_length: bytes | None) -> bool:
    """Whether to decode it would hold up the event loop: long JSON, or many strings."""
    json_bytes = json_length(header_length, len(body))
    return json_bytes > INLINE_BYTES or (len(body) > INLINE_BYTES and b'"BYTES"' in body[:json_bytes])


def decode(
    body: Body, header_length: bytes | None, endpoint: Served, pause: Callable[[], None] = lambda: None
) -> tuple[Call, Wanted]:
    """Decode a whole (decompressed) body. `header_length` is the header Inference-Header-Content-Length, if any.

    Raises BadRequest, and what `pause` raises, which is called now and then where it takes long. Whether the tensors
    fit the model is for the gateway to say, except for a raw body, whose shape is the model's.
    """
    json_bytes = json_length(header_length, len(body))
    if json_bytes == 0 and header_length is not None:
        return _decode_raw(body, endpoint)
    document = body if json_bytes == len(body) else body[:json_bytes]
    request = _without_long_list(document, pause) or _whole(document, pause)
    _check_counts(request, endpoint)
    inputs = _inputs(request, memoryview(body)[json_bytes:], endpoint.model, pause)
    return _call(request, inputs), _wanted(request)


def _without_long_list(document: Body, pause: Callable[[], None]) -> InferRequest | None:
    """None where there is no such list, it is no tensor's, or the rest is not right, which the whole tells better."""
    taken = take_long_list(document)
    if taken is None:
        return None
    around, values = taken
    try:
        request = _whole(around, pause)
    except BadRequest:
        return None
    for tensor in request.inputs:
        if len(tensor.data):
            tensor.data = msgspec.Raw(values)
            return request
    return None


def _whole(document: Body, pause: Callable[[], None]) -> InferRequest:
    tensors.check_keys(document, pause)
    return _parse(document)


def json_length(header: bytes | None, total: int) -> int:
    """Bytes of JSON in a body of `total`, of the header Inference-Header-Content-Length; BadRequest if out of range."""
    if header is None:
        return total
    digits = header.strip()
    if not digits or not _DIGITS.issuperset(digits) or len(digits) > 18 or int(digits) > total:
        shown = header[:40].decode("latin-1")
        raise BadRequest(f"inference header size should be in range (0, {total}), got '{shown}'")
    return int(digits)


def _parse(data: Body) -> InferRequest:
    tensors.check_depth(data)
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise BadRequest(f"failed to read the request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if any(constant in data for constant in _JSON_CONSTANTS):
            return _parse_constants(data, error)
        raise BadRequest(f"failed to parse the request JSON buffer: {error}") from error


def _parse_constants(data: Body, first: Exception) -> InferRequest:
    """The rare request with NaN or Infinity in it: not JSON, but what Triton's clients send and Triton takes."""
    try:
        document = json.loads(data)
        values = [tensor.pop("data", None) for tensor in document["inputs"]]
        request = _decoder.decode(_encoder.encode(document))
    except msgspec.ValidationError as error:
        raise BadRequest(f"failed to read the request: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadRequest(f"failed to parse the request JSON buffer: {first}") from error
    for tensor, value in zip(request.inputs, values, strict=True):
        if value is not None:
            tensor.data = msgspec.Raw(json.dumps(value).encode())
    return request


def _check_counts(request: InferRequest, endpoint: Served) -> None:
    """BadRequest where there is far more of something than the model has, before anything is made of each."""
    model, inputs, outputs = endpoint.model, len(request.inputs), len(request.outputs or ())
    if inputs > len(endpoint.inputs) + _SPARE:
        raise BadRequest(f"expected {len(endpoint.inputs)} inputs but got {inputs} inputs for model '{model}'")
    if outputs > len(endpoint.outputs) + _SPARE:
        raise BadRequest(f"expected at most {len(endpoint.outputs)} outputs but got {outputs} for model '{model}'")
    for part in (request, *request.inputs, *(request.outputs or ())):
        if len(part.parameters) > _MAX_PARAMETERS:
            raise BadRequest(f"expected at most {_MAX_PARAMETERS} parameters but got {len(part.parameters)}")


def _inputs(request: InferRequest, rest: memoryview, model: str, pause: Callable[[], None]) -> dict[str, InputTensor]:
    inputs: dict[str, InputTensor] = {}
    offset = 0
    for tensor in request.inputs:
        pause()
        if tensor.name in inputs:
            raise BadRequest(f"input '{tensor.name}' already exists in request")
        size = _binary_size(tensor)
        kind = tensors.kind_of(tensor.datatype, tensor.name)
        count = tensors.element_count(tensor.name, tensor.shape, kind)
        if size is None:
            array = tensors.from_json(tensor.name, tensor.data, tensor.shape, kind, pause)
        else:
            if kind.item_bytes and size != count * kind.item_bytes:
                raise BadRequest(
                    f"input byte size mismatch for input '{tensor.name}' for model '{model}'. "
                    f"Expected {count * kind.item_bytes}, got {size}"
                )
            missing = size - (len(rest) - offset)
            if missing > 0:
                raise BadRequest(
                    f"unexpected size for input '{tensor.name}', expecting {missing} additional bytes "
                    f"for model '{model}'"
                )
            array = tensors.from_bytes(tensor.name, rest[offset : offset + size], tensor.shape, kind)
            offset += size
        inputs[tensor.name] = InputTensor(tensor.datatype, array)
    if offset != len(rest):
        raise BadRequest(f"unexpected additional input data for model '{model}'")
    return inputs


def _binary_size(tensor: RequestInput) -> int | None:
    """`binary_data_size`, or None for JSON data; exactly one of them must be there."""
    if "shared_memory_region" in tensor.parameters:
        raise BadRequest(f"input '{tensor.name}' uses shared memory, which this server does not offer")
    size = tensor.parameters.get("binary_data_size")
    has_data = len(tensor.data) > 0
    if (size is None) == (not has_data):
        raise BadRequest(f"input '{tensor.name}' must set exactly one of 'data' and the parameter 'binary_data_size'")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise BadRequest(f"binary_data_size of input '{tensor.name}' must be an unsigned integer, got {size!r}")
    return size


def _call(request: InferRequest, inputs: Mapping[str, InputTensor]) -> Call:
    parameters = request.parameters
    outputs = tuple(output.name for output in request.outputs) if request.outputs else None  # [] is all, as in Triton
    if not parameters:
        return Call(inputs, outputs)
    return Call(
        inputs,
        outputs,
        priority=_unsigned(parameters, "priority"),
        timeout_us=_unsigned(parameters, "timeout"),
        sequence_id=_sequence_id(parameters),
    )


def _sequence_id(parameters: Mapping[str, object]) -> int | str:
    value = parameters.get("sequence_id", 0)
    return value if isinstance(value, str) else _unsigned(parameters, "sequence_id")


def _unsigned(parameters: Mapping[str, object], key: str) -> int:
    value = parameters.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise BadRequest(f"parameter '{key}' must be an unsigned integer, got {value!r}")
    return value


def _flag(parameters: Mapping[str, object], key: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"parameter '{key}' must be true or false, got {value!r}")
    return value


def _wanted(request: InferRequest) -> Wanted:
    binary: dict[str, bool] = {}
    classes: dict[str, int] = {}
    seen: set[str] = set()
    for output in request.outputs or ():
        if output.name in seen:
            raise BadRequest(f"output '{output.name}' already exists in request")
        seen.add(output.name)
        _want(output, binary, classes)
    return Wanted(request.id, _flag(request.parameters, "binary_data_output") or False, binary, classes)


def _want(output: RequestOutput, binary: dict[str, bool], classes: dict[str, int]) -> None:
    if "shared_memory_region" in output.parameters:
        raise BadRequest(f"output '{output.name}' uses shared memory, which this server does not offer")
    flag = _flag(output.parameters, "binary_data")
    if flag is not None:
        binary[output.name] = flag
    if "classification" in output.parameters:
        count = _unsigned(output.parameters, "classification")
        if count:
            classes[output.name] = count


def _decode_raw(body: Body, endpoint: Served) -> tuple[Call, Wanted]:
    """The whole body is the one input of the model, one row of it; every output comes back binary."""
    model = endpoint.model
    if len(endpoint.inputs) != 1:
        raise BadRequest(
            f"Raw request must only have 1 input (found {len(endpoint.inputs)}) to be deduced for model '{model}'"
        )
    spec = endpoint.inputs[0]
    shape = _raw_shape(spec, len(body), model)
    kind = datatype(spec.datatype)
    if kind.name == "BYTES":  # the body is the one element itself, without a length before it
        array = np.empty(shape, np.object_)
        array.fill(bytes(body))
    else:
        array = tensors.from_bytes(spec.name, memoryview(body), shape, kind)
    return Call({spec.name: InputTensor(spec.datatype, array)}), Wanted("", True, {}, {})


def _raw_shape(spec: TensorSpec, size: int, model: str) -> list[int]:
    kind = datatype(spec.datatype)
    shape = [1 if axis == spec.batch_axis else dim for axis, dim in enumerate(spec.shape)]
    if kind.name == "BYTES":
        if [dim for axis, dim in enumerate(shape) if axis != spec.batch_axis] not in ([1], [DYNAMIC], []):
            raise BadRequest(f"For BYTES datatype raw input '{spec.name}', the model must have input shape [1]")
        return [1 for _ in shape]
    if shape.count(DYNAMIC) > 1:
        raise BadRequest(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one "
            f"variable-sized dimension in {list(spec.row_shape)}"
        )
    known = kind.item_bytes
    for dim in shape:
        known *= 1 if dim == DYNAMIC else dim
    if DYNAMIC in shape and known and size and size % known == 0:
        return [size // known if dim == DYNAMIC else dim for dim in shape]
    if DYNAMIC in shape or size != known:
        what = f"a multiple of {known}" if DYNAMIC in shape else str(known)
        raise BadRequest(
            f"input byte size mismatch for input '{spec.name}' for model '{model}'. Expected {what}, got {size}"
        )
    return shape


def encoding_takes_long(outputs: Mapping[str, np.ndarray], wanted: Wanted) -> bool:
    """Whether to encode them would hold up the event loop: much that becomes text, or is sorted for its classes."""
    text_bytes = 0
    for name, array in outputs.items():
        if name in wanted.classes or not wanted.binary.get(name, wanted.binary_default):
            text_bytes += array.nbytes
    return text_bytes > _ENCODE_INLINE_BYTES


def encode(
    outputs: Mapping[str, np.ndarray], wanted: Wanted, endpoint: Served, pause: Callable[[], None] = lambda: None
) -> tuple[bytes, int | None]:
    """The response body and, where an output is binary, the length of its JSON part (None: plain JSON).

    Copies everything it keeps. Raises BadRequest where a classification cannot be made of an output, and what `pause`
    raises, which is called now and then where it takes long.
    """
    made = wanted.answer(outputs) if wanted.frames is not None else None
    if made is not None:
        return made
    described: list[ResponseOutput] = []
    chunks: list[bytes] = []
    for spec in endpoint.outputs:
        if spec.name not in outputs:
            continue
        array, name = outputs[spec.name], spec.name
        kind_name = spec.datatype
        if name in wanted.classes:
            labels = endpoint.options.labels.get(name, ())
            array, kind_name = classify(array, wanted.classes[name], labels, spec), "BYTES"
        if wanted.binary.get(name, wanted.binary_default):
            chunk = tensors.bytes_of(array)
            chunks.append(chunk)
            described.append(ResponseOutput(name, list(array.shape), kind_name, {"binary_data_size": len(chunk)}))
        else:
            described.append(ResponseOutput(name, list(array.shape), kind_name, None, tensors.json_of(array, pause)))
    response = InferResponse(
        id=wanted.id, model_name=endpoint.model, model_version=str(endpoint.version), outputs=described
    )
    head = _encoder.encode(response)
    if wanted.frames is not None and list(outputs) == [output.name for output in described]:
        wanted.keep(outputs, response)
    if not any(output.parameters is not None for output in described):
        return head, None
    return b"".join((head, *chunks)), len(head)


def classify(array: np.ndarray, count: int, labels: tuple[str, ...], spec: TensorSpec) -> np.ndarray:
    """The `count` largest values of every row as "<value>:<index>[:<label>]", best first: [rows, min(count, n)] BYTES.

    Equal values keep the order of their indices. A row's other dimensions count as one.
    """
    if array.dtype == np.object_:
        raise BadRequest(f"output '{spec.name}' has no numbers to classify")
    if spec.batch_axis:
        array = np.moveaxis(array, spec.batch_axis, 0)
    rows = 1 if spec.batch_axis is None else array.shape[0]
    flat = array.reshape(rows, -1)
    if rows * min(count, flat.shape[1]) > _MAX_CLASSES:
        raise BadRequest(
            f"classification of output '{spec.name}' asks for more than {_MAX_CLASSES} classes in all rows"
        )
    top = min(count, flat.shape[1])
    is_float = datatype(spec.datatype).is_float
    order = _descending(flat, is_float=is_float)[:, :top]
    result = np.empty((rows, top), dtype=np.object_)
    for row in range(rows):
        for rank, index in enumerate(order[row]):
            value = flat[row, index]
            shown = f"{float(value):f}" if is_float else str(value)
            label = f":{labels[index]}" if index < len(labels) else ""
            result[row, rank] = f"{shown}:{index}{label}".encode()
    return result[0] if spec.batch_axis is None else result


def _descending(rows: np.ndarray, *, is_float: bool) -> np.ndarray:
    """Indices of each row's values, the largest first, equal ones in order; NaN comes last.

    Integers are compared as they are: as floats, large ones would tie.
    """
    order: np.ndarray
    if is_float:
        order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")
    else:
        order = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return order
