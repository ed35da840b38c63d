"""`bitserve inspect`: what a version in a repository was compiled to, kernel by kernel, and what to know of it."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.terminal import fail, print_table, read_settings
from engines import repository
from engines.errors import EngineError

if TYPE_CHECKING:
    from app.settings import Settings

__all__ = ["inspect_version"]


def inspect_version(
    model: Annotated[str, typer.Argument(help="Model name.", show_default=False)],
    version: Annotated[int | None, typer.Option("--version", help="Version; the newest if not given.")] = None,
    repository_folder: Annotated[
        Path | None,
        typer.Option("--repository", help="Folder of models.", metavar="FOLDER", show_default="model_repo"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where its plans lie.", metavar="FOLDER", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print manifest and report as one JSON document.")] = False,
) -> None:
    """Show what a version in a repository was compiled to; no server is needed."""
    flags = {"repository": repository_folder, "cache": cache}
    settings = read_settings(**{name: value for name, value in flags.items() if value is not None})
    try:
        plan = _plan_of(settings, model, version)
        manifest_bytes, report_bytes = (
            (plan / name).read_bytes() for name in (repository.MANIFEST_FILE, repository.REPORT_FILE)
        )
        inline = "" if as_json else _inline_words(plan, settings)
    except EngineError as error:
        fail(str(error))
    except OSError as error:
        fail(f"the plan of {model!r} cannot be read: {error.strerror}")
    if as_json:
        print(json.dumps({"manifest": json.loads(manifest_bytes), "report": json.loads(report_bytes)}))
        return
    _show(json.loads(manifest_bytes), json.loads(report_bytes), settings.max_batch_size, inline)


def _inline_words(plan: Path, settings: Settings) -> str:
    """Measured now, as a server does when it loads the plan."""
    from app.inline import INLINE_US, inline_rows
    from engines.runtime.openvino import load_session

    manifest = repository.decode((plan / repository.MANIFEST_FILE).read_bytes())
    session = load_session(plan, manifest)
    try:
        rows = inline_rows(session, manifest, manifest.max_batch or settings.max_batch_size)
    finally:
        session.close()
    if not rows:
        return f"in threads: one row takes {INLINE_US:g} us or more, or may"
    return (
        f"on the server's loop up to {rows} rows, in less than {INLINE_US:g} us, while nothing waits; else in threads"
    )


def _show(manifest: dict[str, Any], report: dict[str, Any], max_batch_size: int, inline: str) -> None:
    batched, enough = manifest["proof"]["batchable"], manifest["enough_rows"]
    rows = (
        f"up to {manifest['max_batch'] or max_batch_size} rows" if batched else f"none: {manifest['proof']['reason']}"
    )
    print_table(
        ("what", "found"),
        [
            ("engine", f"{manifest['target']}, {manifest['precision']}, {manifest['engine']['size_bytes']:,} bytes"),
            ("made of", f"{manifest['source']['file']}, {manifest['source']['size_bytes']:,} bytes"),
            ("batches", f"{rows}; {enough} are enough" if enough else rows),
            ("streams", f"{manifest['streams']} on {manifest['threads']} threads"),
            ("runs", inline),
            *(("plan", _plan_words(target)) for target in report["targets"][1:]),
            *(("note", note) for note in manifest["notes"]),
        ],
    )
    headers = ("operator", "precision", "kernel", "layers", "bytes saved by weights of 1 bit")
    print_table(headers, _kernels(report["layers"]))


def _plan_words(target: dict[str, Any]) -> str:
    """What came of a target that is a GPU's, or of some of its GPUs."""
    if not target["made"]:
        return f"{target['target']}: not made: {target['reason']}"
    said = f"{target['target']} for {', '.join(target['gpus'])}, {target['precision']}, {target['size_bytes']:,} bytes"
    if not target["binary"]:
        return said
    return f"{said}; binary layers as {target['binary']}, {target['binary_weight_bytes']:,} bytes of weights"


def _plan_of(settings: Settings, model: str, version: int | None) -> Path:
    """The folder of the plan. Raises EngineError where there is no such version, or it was never compiled."""
    from app.plans import Plans

    repository.check_model_name(model)
    found = repository.scan(settings.models_folder)
    versions = {files.version: files for files in found.get(model, [])}
    if not versions:
        there = ", ".join(found) or "none at all"
        raise EngineError(f"{settings.models_folder} has no model {model!r}; it has {there}; see --repository")
    wanted = max(versions) if version is None else version
    if wanted not in versions:
        raise EngineError(f"model {model!r} has no version {wanted}; it has {', '.join(map(str, sorted(versions)))}")
    plans = Plans(settings)
    try:
        plan = asyncio.run(plans.folder_of(versions[wanted].folder))
    finally:
        plans.close()
    if plan is None:
        raise EngineError(
            f"version {wanted} of {model!r} has no plan for this machine yet; bitserve serve makes one when it starts"
        )
    return plan


def _kernels(layers: Iterable[dict[str, Any]]) -> list[Sequence[str]]:
    """One line for each kind of layer, in the order in which they first run."""
    groups = defaultdict[tuple[str, str, str], list[int]](list)
    for layer in layers:
        groups[layer["op_type"], layer["precision"], layer["kernel"]].append(layer["weight_bytes_saved"])
    return [(*kind, str(len(saved)), f"{sum(saved):,}" if sum(saved) else "") for kind, saved in groups.items()]
