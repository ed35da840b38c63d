"""The settings: the only reader of the environment. Setting `a_b` is flag `--a-b`, variable `BITSERVE_A_B`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.store.bucket import ADDRESSES, is_address

__all__ = ["Settings"]

_SHORTEST_KEY = 16


class Settings(BaseSettings):
    """Frozen, validated once, passed down."""

    model_config = SettingsConfigDict(env_prefix="BITSERVE_", frozen=True, extra="forbid")

    repository: Path | str = Field(
        Path("model_repo"),
        description="Folder of models; an empty one is served too. Or a store: s3://, gs://, az:// or file:///path.",
    )
    mirror: Path | None = Field(
        None, description="Folder for what is downloaded of a store; a temporary one, gone afterwards, unless set."
    )
    max_mirror_bytes: int = Field(
        68_719_476_736, ge=1024, description="Disk that versions in the mirror may take; those not wanted longest go."
    )
    cache: Path | None = Field(
        None, description="Folder of compiled plans; `<repository>/.cache` unless set, a temporary one if read-only."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    admin_token: SecretStr | None = Field(
        None,
        description="For load, unload, compile and builds: `Authorization: Bearer <token>`. Made at start if unset.",
    )
    plan_key: SecretStr | None = Field(
        None,
        description="Signs plans for GPUs: others are not read. Made at the first start if unset, and kept.",
    )
    max_batch_size: int = Field(32, ge=0, le=65536, description="Rows of a batch unless the model says otherwise.")
    max_queue_rows: int = Field(1024, ge=0, description="Rows that may wait per model; beyond it 503. 0 = unbounded.")
    max_body_bytes: int = Field(
        134_217_728, ge=1024, description="Largest request body, on the wire and decompressed; beyond it 413."
    )
    max_held_bytes: int = Field(
        1_073_741_824, ge=1024, description="Request bodies held at once, decompressed; beyond it 503."
    )
    max_connections: int = Field(1024, ge=1, description="Open connections; one more is answered 503 and closed.")
    header_timeout_s: float = Field(10, gt=0, description="Time for a request's headers to arrive.")
    body_timeout_s: float = Field(30, gt=0, description="Longest silence while a request's body arrives.")
    write_timeout_s: float = Field(30, gt=0, description="Longest time a client may take nothing of its answer.")
    keep_alive_s: float = Field(75, gt=0, description="Time an idle connection is kept open.")
    front_ends: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that take connections; from 2 on, beside one that runs the engines for all of them.",
    )
    threads: int = Field(
        0, ge=0, description="Threads that all engines may use together; 0 = min(CPU affinity, cgroup quota)."
    )
    metrics: bool = Field(True, description="Serve /metrics.")
    drain_s: float = Field(30, ge=0, description="Time after SIGTERM to answer what was accepted.")
    watch_s: float = Field(1.0, ge=0, description="Period of looking for new and removed models; 0 = only at start.")
    max_upload_bytes: int = Field(4_294_967_296, ge=1024, description="Largest upload of a model; beyond it 413.")
    max_queued_builds: int = Field(16, ge=0, description="Uploads that may arrive or wait for a build; beyond it 503.")
    max_builds_bytes: int = Field(
        68_719_476_736, ge=1024, description="Disk that uploads and finished builds may take; the oldest go first."
    )
    keep_builds: int = Field(100, ge=0, description="Finished builds whose state is kept; the last one always is.")
    build_timeout_s: float = Field(
        600, gt=0, description="Wall time of one compile, then it is ended; FP32 serves if proven by then."
    )
    build_cpu_s: float = Field(
        0, ge=0, description="CPU time of one compile, all threads together; 0 = what all have within the wall time."
    )
    build_executor: Literal["process", "kubernetes"] = Field(
        "process", description="Who builds: this server's own processes, or Jobs of its cluster (with a store)."
    )
    pod_name: str | None = Field(
        None, description="The server's own pod, after which Jobs are made; named as its host unless set."
    )
    build_image: str | None = Field(
        None, description="Image of Jobs that build; that of the server's own pod unless set."
    )
    build_gpu_selector: str = Field(
        "nvidia.com/gpu.present=true", description="Labels of nodes for Jobs that need a GPU: `key=value,...`."
    )
    build_gpu_runtime_class: str | None = Field(
        None, description="RuntimeClass of Jobs that get a GPU beside servers without; the nodes' default unless set."
    )
    build_for_gpus: bool = Field(
        True, description="Build for the GPUs that are here, too, where a model's spec names no targets."
    )
    gpu_hang_s: float = Field(
        120,
        ge=0,
        description="A GPU that has not ended a batch after so long, or a load after ten times that, is lost; 0 = off.",
    )
    build_memory_bytes: int = Field(
        8_589_934_592, ge=1, description="Resident memory of one compile, then it is ended in the same way."
    )
    access_log: bool = Field(False, description="Log every request, not only failures.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level that is logged.")
    delay_scheduler: int = Field(
        0, ge=0, description="Hold each model's first batch until this many requests wait (for tests)."
    )

    @field_validator("repository")
    @classmethod
    def _folder_or_address(cls, repository: Path | str) -> Path | str:
        if is_address(repository):
            return str(repository)
        if "://" in str(repository):
            raise ValueError(f"expected a folder, or an address of {', '.join(f'{kind}://' for kind in ADDRESSES)}")
        return Path(repository)

    @field_validator("admin_token")
    @classmethod
    def _token_is_something(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not token.get_secret_value().strip():
            raise ValueError("an empty token would lock everyone out; leave it unset, or set one")
        return token

    @field_validator("plan_key")
    @classmethod
    def _key_is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < _SHORTEST_KEY:
            raise ValueError(
                f"a plan_key needs {_SHORTEST_KEY} characters at least; leave it unset, or set a longer one"
            )
        return key

    @model_validator(mode="after")
    def _drain_is_finite(self) -> Settings:
        if self.drain_s == float("inf"):
            raise ValueError("drain_s must be finite")
        return self

    @field_validator("build_gpu_selector")
    @classmethod
    def _selector_has_pairs(cls, selector: str) -> str:
        for pair in filter(None, selector.split(",")):
            if "=" not in pair.strip("="):
                raise ValueError(f"expected labels as key=value,key=value, this has {pair[:60]!r}")
        return selector

    @model_validator(mode="after")
    def _jobs_have_a_store(self) -> Settings:
        if self.build_executor == "kubernetes" and self.store is None:
            raise ValueError(
                "build_executor kubernetes needs a repository in a store (s3://...): Jobs run on other machines"
            )
        return self

    @property
    def gpu_selector(self) -> dict[str, str]:
        """`build_gpu_selector`, by label."""
        pairs = (pair.partition("=") for pair in self.build_gpu_selector.split(",") if pair)
        return {key.strip(): value.strip() for key, _, value in pairs}

    @property
    def store(self) -> str | None:
        """The address of the store that the models come from, if they do."""
        return self.repository if isinstance(self.repository, str) else None

    @property
    def models_folder(self) -> Path:
        """Where models lie on this machine: the repository, or what is here of a store."""
        if isinstance(self.repository, Path):
            return self.repository
        assert self.mirror is not None, "a server with a store has a mirror, from its start on"
        return self.mirror

    @property
    def builds_folder(self) -> Path:
        """Where uploads and builds lie, on this machine."""
        return self.models_folder / ".builds"

    @property
    def own_plan_key(self) -> bytes | None:
        """The key for plans, where one was set."""
        return None if self.plan_key is None else self.plan_key.get_secret_value().encode()

    @property
    def cache_folder(self) -> Path:
        """Where compiled plans lie."""
        return self.cache if self.cache is not None else self.models_folder / ".cache"
