"""What a build is made from: a model file, and what its sender gave with it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engines.errors import ModelRefused
from engines.files import open_plain
from engines.repository import CALIBRATION_FILE, MODEL_FILE, SPEC_FILE, VALIDATION_FILE, file_sha256, plan_key
from engines.spec import Spec, Target, decode_spec, encode_spec

__all__ = ["MAX_SPEC_BYTES", "BuildRequest", "GpusHere", "spec_digest"]

MAX_SPEC_BYTES = 2**20
decode_spec(encode_spec(Spec()))  # msgspec's notion of the type is made here, before threads could meet it half-made


class GpusHere(NamedTuple):
    """A target that can be built, and its GPUs, such as "sm86"."""

    target: Target
    names: tuple[str, ...]


@dataclass(frozen=True)
class BuildRequest:
    """Paths of the inputs of one build; what was not given is None.

    `source` is a model file; `spec` is JSON as `engines.spec.encode_spec` writes it; `calibration` holds arrays by
    input name, first axis = samples, as .npz; `validation` the same with labels or targets.

    `here` is what the machine has besides a CPU: it is built for, too, where the spec names no targets. The key is
    that of what was sent: a plan for GPUs that come and go is built again beside the same engine.
    """

    source: Path
    spec: Path | None = None
    calibration: Path | None = None
    validation: Path | None = None
    here: GpusHere | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> BuildRequest:
        """The request that lies in a folder under the names of the repository, in a version's folder say."""

        def given(name: str) -> Path | None:
            path = folder / name
            return path if path.is_file() or path.is_symlink() else None  # a link is not passed over, but refused

        return cls(folder / MODEL_FILE, given(SPEC_FILE), given(CALIBRATION_FILE), given(VALIDATION_FILE))

    def files(self) -> dict[str, Path]:
        """Every file that was given, by the name that it has in a folder; the model first."""
        named = {
            MODEL_FILE: self.source,
            SPEC_FILE: self.spec,
            CALIBRATION_FILE: self.calibration,
            VALIDATION_FILE: self.validation,
        }
        return {name: path for name, path in named.items() if path is not None}

    def read_spec(self) -> Spec:
        """What was asked; the default where nothing was. Raises ModelRefused where it cannot be read."""
        asked = self._sent_spec()
        if self.here is None or asked.targets is not None:
            return asked
        return dataclasses.replace(asked, targets=("openvino", self.here.target), gpus=self.here.names)

    def _sent_spec(self) -> Spec:
        if self.spec is None:
            return Spec()
        with open_plain(self.spec) as file:
            data = file.read(MAX_SPEC_BYTES + 1)
        if len(data) > MAX_SPEC_BYTES:
            raise ModelRefused(f"{SPEC_FILE} has more than {MAX_SPEC_BYTES} bytes")
        return decode_spec(data)

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of every file by its name in a folder. Of the spec, what it means counts: a default one is none.

        Raises ModelRefused where the spec cannot be read, or a file is a link.
        """
        found = {name: file_sha256(path) for name, path in self.files().items() if name != SPEC_FILE}
        return {**found, **spec_digest(self._sent_spec())}

    def key(self, threads: int = 0, digests: Mapping[str, str] | None = None) -> str:
        """The cache key of the plan that comes of it, with an engine of so many threads (0 = all usable ones).

        `digests` stand in for those of the files where the caller knows them. Raises ModelRefused as `digests` does.
        """
        found = dict(self.digests() if digests is None else digests)
        return plan_key(found.pop(MODEL_FILE), threads=threads, given=found)


def spec_digest(spec: Spec) -> dict[str, str]:
    """The spec's entry of `BuildRequest.digests`."""
    return {} if spec == Spec() else {SPEC_FILE: hashlib.sha256(encode_spec(spec)).hexdigest()}
