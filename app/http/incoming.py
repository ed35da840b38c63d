"""From the bytes of an upload to a build in the queue; the same upload again is the build that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Request

from app.builds.service import BuildService
from app.builds.state import Asked, upload_key
from app.builds.store import INPUT, now
from app.http.errors import BadRequest, BodyTooLarge
from app.http.uploads import Received, receive
from app.serving.errors import QueueFull
from app.settings import Settings
from app.specs import read_spec
from engines.repository import (
    CALIBRATION_FILE,
    MODEL_FILE,
    SPEC_FILE,
    VALIDATION_FILE,
    check_model_folder,
    check_model_name,
)
from engines.request import MAX_SPEC_BYTES, spec_digest
from engines.spec import Spec, encode_spec, require_calibration, require_truth

__all__ = ["accept"]

_FILES = {"model": MODEL_FILE, "calibration": CALIBRATION_FILE, "validation": VALIDATION_FILE}
_LOOK_EVERY_BYTES = 2**22
"""How much may come between two looks at the disk: a look walks all that builds have there."""


async def accept(settings: Settings, builds: BuildService, model: str, request: Request) -> str:
    """Receive an upload and queue its build; the id, or that of the build of the same upload.

    Raises BadRepository, BadRequest, BodyTooLarge, ModelRefused (of the spec), QueueFull, and ClientDisconnect where
    its client leaves before its last byte; then nothing of it is kept.
    """
    check_model_name(model)
    check_model_folder(settings.models_folder / model)
    with builds.admit():
        return await _take(settings, builds, model, request)


async def _take(settings: Settings, builds: BuildService, model: str, request: Request) -> str:
    announced = int(request.headers.get("content-length", "0"))
    if announced > settings.max_upload_bytes:
        raise BodyTooLarge(f"the upload has more than {settings.max_upload_bytes} bytes; see setting max_upload_bytes")
    await builds.require_disk(announced)
    build = builds.new_id()
    try:
        async with builds.receive(build) as staging:
            received, spec = await _receive(settings, builds, request, staging / INPUT)
            key = _key(model, received, spec)
            same = await builds.find_same(model, key)
            if same is not None:
                raise _AlreadyHereError(same)
            file = received["model"]
            asked = Asked(
                id=build, model=model, key=key, file_name=file.file_name, sha256=file.sha256,
                size_bytes=file.size_bytes, created=now(), targets=spec.gpu_targets,
            )  # fmt: skip
            await builds.add(asked, staging)
    except _AlreadyHereError as here:
        return here.build
    except OSError as error:
        raise QueueFull(f"the upload could not be stored: {error.strerror or type(error).__name__}") from error
    return build


async def _receive(
    settings: Settings, builds: BuildService, request: Request, folder: Path
) -> tuple[dict[str, Received], Spec]:
    """Write the parts into `folder`, under the names that a version's folder has for them."""
    files = {part: folder / name for part, name in _FILES.items()}
    chunks = _within_quota(request.stream(), builds)
    content_type = request.headers.get("content-type", "")
    received = await receive(content_type, chunks, files, {"spec": MAX_SPEC_BYTES}, settings.max_upload_bytes)
    if "model" not in received or not received["model"].size_bytes:
        raise BadRequest("the upload has no part 'model' with the bytes of a model file")
    for name, part in received.items():
        if not part.size_bytes:
            raise BadRequest(f"part '{name}' is empty; leave it out, or send its bytes")
    spec = read_spec(received["spec"].text) if "spec" in received else Spec()
    if "validation" not in received:
        require_truth(spec, None, has_samples="calibration" in received)
    require_calibration(spec, has_calibration="calibration" in received)
    if spec != Spec():
        (folder / SPEC_FILE).write_bytes(encode_spec(spec))
    return received, spec


async def _within_quota(chunks: AsyncIterator[bytes], builds: BuildService) -> AsyncIterator[bytes]:
    """The same chunks; QueueFull once what was written of them, announced or not, is more than builds may take."""
    unseen = 0
    async for chunk in chunks:
        unseen += len(chunk)
        if unseen >= _LOOK_EVERY_BYTES:
            unseen = 0
            await builds.require_disk(0)
        yield chunk
    await builds.require_disk(unseen)


def _key(model: str, received: dict[str, Received], spec: Spec) -> str:
    """Of every part, and of the spec what it means."""
    digests = {_FILES[name]: part.sha256 for name, part in received.items() if name in _FILES}
    return upload_key(model, {**digests, **spec_digest(spec)})


class _AlreadyHereError(Exception):
    """The same upload came before; nothing of this one is kept."""

    def __init__(self, build: str) -> None:
        self.build = build
