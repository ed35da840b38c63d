"""What is tuned: one version of a model in a repository, its plan, and the configuration that it has now."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.config import ModelConfig, model_options, read_config
from app.overrides import Override
from app.plans import Plans
from app.settings import Settings
from app.tune.config_edit import with_values
from app.tune.errors import TuneFailed
from app.tune.space import Parameters, changes, parameters_of
from engines import repository
from engines.errors import BadRepository
from engines.repository import Manifest, VersionFiles
from engines.request import BuildRequest
from engines.runtime import usable_threads

__all__ = ["Subject", "opened"]


@dataclass(frozen=True)
class Subject:
    """`config_text` is the model's config.toml as it is, empty where there is none; `current` is what it comes to.

    `threads` is what the engine may use, `cache` where the plan lies.
    """

    model: str
    version: int
    folder: Path
    config_file: Path
    config_text: str
    config: ModelConfig
    manifest: Manifest
    current: Parameters
    cache: Path
    threads: int

    def place(self, where: Path, parameters: Parameters) -> None:
        """A repository that holds the version under this setting, and nothing else; the model's files are linked."""
        model = where / self.model
        model.mkdir(parents=True)
        (model / str(self.version)).symlink_to(self.folder.absolute())
        text = self.config_text
        if parameters != self.current:
            text = with_values(text, changes(self.current, parameters))
        (model / repository.CONFIG_FILE).write_text(text, "utf-8", newline="")
        for file in self.config.labels.values():  # copied: a link would lead out of the model's folder
            (model / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.config_file.parent / file, model / file)


@contextlib.contextmanager
def opened(settings: Settings, model: str, say: Callable[[str], None]) -> Iterator[Subject]:
    """The newest version that the configuration asks for; compiled now if need be, of which `say` is told.

    Raises EngineError or TuneFailed with the reason.
    """
    files, text, config = _found(settings, model)
    plans = Plans(settings)
    try:
        manifest = asyncio.run(plans.make(BuildRequest.of_folder(files.folder), say, warn=say))
        plan = asyncio.run(plans.folder_of(files.folder))
        if plan is None:
            raise TuneFailed(f"the plan of {model!r} has gone while it was looked at; try again")
        file = settings.models_folder / model / repository.CONFIG_FILE
        options = model_options(
            config, file.parent, batchable=manifest.proof.batchable,
            max_batch_rows=manifest.max_batch or settings.max_batch_size, max_queue_rows=settings.max_queue_rows,
            enough_rows=manifest.enough_rows, outputs=[spec.name for spec in manifest.outputs],
        )  # fmt: skip
        yield Subject(
            model, files.version, files.folder, file, text, config, manifest,
            parameters_of(options, manifest.streams), plan.parent, settings.threads or usable_threads(),
        )  # fmt: skip
    finally:
        plans.close()


def _found(settings: Settings, model: str) -> tuple[VersionFiles, str, ModelConfig]:
    repository.check_model_name(model)
    found = repository.scan(settings.models_folder)
    versions = found.get(model, [])
    if not versions:
        there = ", ".join(found) or "none at all"
        raise TuneFailed(f"{settings.models_folder} has no model {model!r}; it has {there}; see --repository")
    file = settings.models_folder / model / repository.CONFIG_FILE
    try:
        text = file.read_bytes().decode()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadRepository(f"{file.name} of {model!r} cannot be read: expected TOML in UTF-8") from error
    config = read_config(text)
    wanted = Override(config).choose(file, {files.version for files in versions})
    if not wanted:
        raise TuneFailed(
            f"the configuration of {model!r} asks for versions {config.versions}, and none of them is there"
        )
    return next(files for files in versions if files.version == max(wanted)), text, config
