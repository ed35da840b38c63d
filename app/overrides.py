"""What a load call brought along instead of what is on disk: a configuration, model files. Gone at the next load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from app.config import ModelConfig
from engines import repository
from engines.repository import VersionFiles

__all__ = ["Overrides"]


class Overrides:
    """Files lie in a folder of this process, laid out like the repository, and stand in for all versions of a model."""

    def __init__(self) -> None:
        self._configs: dict[str, ModelConfig] = {}
        self._folder: Path | None = None

    def config(self, model: str) -> ModelConfig | None:
        return self._configs.get(model)

    def scan(self) -> dict[str, list[VersionFiles]]:
        """Models whose files were brought by a load call."""
        return repository.scan(self._folder) if self._folder is not None else {}

    def set_config(self, model: str, config: ModelConfig | None) -> ModelConfig | None:
        """Put a configuration in force, or none; returns the one before."""
        before = self._configs.pop(model, None)
        if config is not None:
            self._configs[model] = config
        return before

    def set_files(self, model: str, files: Mapping[int, bytes]) -> None:
        """Replace the files that stand in for a model; none means that the repository's are served again."""
        if self._folder is None:
            if not files:
                return
            self._folder = Path(tempfile.mkdtemp(prefix="bitserve-loaded-"))
        shutil.rmtree(self._folder / model, ignore_errors=True)
        for version, data in files.items():
            with repository.staged_folder(self._folder / model / str(version)) as staging:
                (staging / repository.MODEL_FILE).write_bytes(data)

    def drop(self, model: str) -> None:
        """Forget everything about a model."""
        self._configs.pop(model, None)
        self.set_files(model, {})

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
