"""From files and a configuration to an endpoint that is warm but not yet in service. Nothing served changes here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

from app.config import ModelConfig, model_options
from app.overrides import Override
from app.plans import Plans
from app.serving.endpoint import Endpoint
from app.serving.gateway import Gateway
from app.serving.limits import ModelOptions
from app.serving.stats import Stats
from app.settings import Settings
from app.words import printable
from engines import repository
from engines.errors import EngineError
from engines.repository import Manifest, VersionFiles
from engines.request import BuildRequest
from engines.runtime.plans import Unfit
from engines.runtime.session import Session

__all__ = ["Loaded", "Loader"]

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """Warm, not yet in service. `note` is what is worth knowing about it. `renewal` makes the same anew, for the
    libraries and GPUs that are here, where plans of this one are not read; or says why not.
    """

    endpoint: Endpoint
    note: str
    renewal: Callable[[], Coroutine[Any, Any, Loaded | str]] | None = None


class Loader:
    """Keeps the counters of every version, so that they go on when it is loaded anew."""

    def __init__(self, settings: Settings, gateway: Gateway) -> None:
        self._settings, self._gateway = settings, gateway
        self._stats: dict[tuple[str, int], Stats] = {}
        self._sessions: dict[Endpoint, Session] = {}
        self.plans = Plans(settings)

    def forget(self, model: str, number: int) -> None:
        """The version's files are gone: should it come back, it counts from 0."""
        self._stats.pop((model, number), None)

    def release(self, endpoint: Endpoint) -> None:
        """Let the session of an endpoint that has stopped be closed; the caller does not wait for it."""
        session = self._sessions.pop(endpoint, None)
        if session is not None:
            self.plans.closing.start(session)

    async def close(self) -> None:
        """Give back in order what GPUs have lent. A session that still runs is left to the end of the process."""
        for endpoint, session in list(self._sessions.items()):
            if session.is_on_gpu and not endpoint.in_flight:
                self.release(endpoint)
        await self.plans.closing.wait()

    async def prepare(
        self, files: VersionFiles, override: Override, say: Callable[[str], None], *, only_known: bool = False
    ) -> Loaded | str:
        """Compile if needed, import, warm up; or why that failed. `say` is told what takes time.

        `only_known` compiles nothing: where it would have to, the answer is an empty reason.
        """
        return await self._or_why(files, self._prepared(files, override, say, only_known=only_known))

    async def _renewed(self, files: VersionFiles, override: Override) -> Loaded | str:
        async def renewed() -> Loaded | str:
            await self.plans.renew(BuildRequest.of_folder(files.folder))
            return await self._prepared(files, override, lambda reason: None, may_renew=False)

        return await self._or_why(files, renewed())

    async def _prepared(
        self, files: VersionFiles, override: Override, say: Callable[[str], None], *, only_known: bool = False,
        may_renew: bool = True,
    ) -> Loaded | str:  # fmt: skip
        config = override.over(self._settings.models_folder / files.model / repository.CONFIG_FILE)
        repository.check_model_folder(files.folder.parent)
        request = BuildRequest.of_folder(files.folder)
        manifest = await self.plans.find(request)
        if manifest is None and only_known:
            return ""
        if manifest is None:
            manifest = await self.plans.make(request, say)
        options = self._options(files, manifest, config)
        manifest, session = await self.plans.open(request, manifest, options, say)
        try:
            unfit = await self.plans.unfit(request, manifest)
        except BaseException:
            self.plans.closing.start(session)
            raise
        renews = may_renew and any(plan.rebuild for plan in unfit)
        refused = self.plans.not_on_gpu(manifest)
        on_cpu = printable(f"the CPU answers: {refused}") if refused else ""
        note = "; ".join(
            filter(
                None,
                (_note(manifest, options), _most_note(session, options), on_cpu, *_plan_notes(unfit, renews=renews)),
            )
        )
        renewal = functools.partial(self._renewed, files, override) if renews else None
        return Loaded(self._endpoint(files, manifest, session, options), note, renewal)

    async def _or_why(self, files: VersionFiles, work: Coroutine[Any, Any, Loaded | str]) -> Loaded | str:
        try:
            return await work
        except EngineError as error:
            return printable(str(error))
        except OSError as error:  # its own text would name a path of this machine
            return f"its files cannot be read: {error.strerror or type(error).__name__}"
        except Exception as error:
            log.exception("loading %s/%d", files.model, files.version)
            return f"it could not be loaded: {printable(str(error))}"

    def _options(self, files: VersionFiles, manifest: Manifest, config: ModelConfig) -> ModelOptions:
        return model_options(
            config,
            self._settings.models_folder / files.model,
            batchable=manifest.proof.batchable,
            max_batch_rows=manifest.max_batch or self._settings.max_batch_size,
            max_queue_rows=self._settings.max_queue_rows,
            enough_rows=manifest.enough_rows,
            outputs=[spec.name for spec in manifest.outputs],
        )

    def _endpoint(self, files: VersionFiles, manifest: Manifest, session: Session, options: ModelOptions) -> Endpoint:
        endpoint = Endpoint(
            files.model, files.version, manifest.inputs, manifest.outputs, session, options,
            self._gateway.device_of(session), self._stats.setdefault((files.model, files.version), Stats()),
        )  # fmt: skip
        endpoint.fails_on_values = manifest.fails_on_values
        endpoint.hold_requests = self._settings.delay_scheduler
        self._sessions[endpoint] = session
        return endpoint


def _note(manifest: Manifest, options: ModelOptions) -> str:
    """What the index should say of a version that serves."""
    rows, proven = options.limits.max_batch_rows, manifest.proof.rows
    beyond = (
        [f"batches of more than {proven} rows are not proven"] if manifest.proof.batchable and rows > proven else []
    )
    return printable("; ".join((*manifest.remarks, *beyond)))


def _most_note(session: Session, options: ModelOptions) -> str:
    most = session.most_rows
    if not most or options.limits.max_batch_rows <= most:
        return ""
    return (
        f"its plan for the GPU is for {most} rows at most: a batch is no larger, and a request that is runs on the CPU"
    )


def _plan_notes(unfit: Sequence[Unfit], *, renews: bool) -> Iterator[str]:
    for plan in unfit:
        doing = "; it is being built again, and the CPU answers meanwhile" if renews and plan.rebuild else ""
        yield printable(f"its plan for {plan.target} is not used: {plan.reason}{doing}")
