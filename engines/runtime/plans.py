"""Which plans for GPUs may be deserialized here. A plan is native code: what is not ours, or unfit, is not read."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from engines.errors import PlanInvalid
from engines.handover import MANIFEST_FILE
from engines.hardware import gpus
from engines.manifest import Manifest, PlanFile
from engines.signature import is_signed

__all__ = ["Here", "Unfit", "look_here", "read_plan", "unfit_plans"]

_DISTRIBUTIONS = {"tensorrt-rtx": ("tensorrt-rtx",), "tensorrt": ("tensorrt-cu13", "tensorrt")}
_AMPERE = 80


class Here(NamedTuple):
    """Versions of the libraries that are installed, by target; SMs of the GPUs, each once; how many GPUs there are."""

    versions: Mapping[str, str]
    sms: tuple[int, ...]
    gpus: int = 0


class Unfit(NamedTuple):
    """A plan that is not read, and why. `rebuild`: its source can be compiled again, for what is here."""

    target: str
    reason: str
    rebuild: bool


def look_here() -> Here:
    """Imports none of the libraries."""
    found = {target: _version(names) for target, names in _DISTRIBUTIONS.items()}
    versions = {target: version for target, version in found.items() if version is not None}
    seen = gpus()
    return Here(versions, tuple(dict.fromkeys(gpu.sm for gpu in seen)), len(seen))


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def unfit_plans(folder: Path, manifest: Manifest, key: bytes | None, here: Here) -> list[Unfit]:
    """Targets with plans in a plan's folder that must not be deserialized here, or with none for a GPU that is here."""
    found = []
    for target in dict.fromkeys(plan.target for plan in manifest.plans):
        plans = [plan for plan in manifest.plans if plan.target == target]
        reason = next(filter(None, (_problem(folder, plan, key, here) for plan in plans)), "")
        strange = [sm for sm in here.sms if not any(_fits(plan, sm) for plan in plans)]
        if strange and not reason:
            reason = _strange([sm for plan in plans for sm in plan.sms], strange)
        if reason:
            found.append(Unfit(target, reason, target in here.versions))
    return found


def _problem(folder: Path, plan: PlanFile, key: bytes | None, here: Here) -> str:
    """Why one of a target's plans cannot be read, for GPUs that it fits: others may have a plan of their own."""
    try:
        read_plan(folder, plan, key, here._replace(sms=tuple(sm for sm in here.sms if _fits(plan, sm))))
    except PlanInvalid as error:
        return str(error)
    return ""


def read_plan(folder: Path, plan: PlanFile, key: bytes | None, here: Here) -> bytes:
    """The bytes of a plan, the very ones that were checked: what is given to a library that deserializes them.

    Raises PlanInvalid unless the manifest was signed here, the plan is the one that it describes, its library is
    installed in the version that built it, and it fits the GPUs that are here, if any.
    """
    try:
        manifest, data = (folder / MANIFEST_FILE).read_bytes(), (folder / plan.file).read_bytes()
    except OSError as error:
        raise PlanInvalid(f"it cannot be read: {error.strerror}") from error
    if not is_signed(folder, manifest, key):
        raise PlanInvalid("it does not bear this installation's signature")
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), plan.sha256):
        raise PlanInvalid("its bytes are not those that were signed")
    installed = here.versions.get(plan.target)
    if installed is None:
        raise PlanInvalid(f"{plan.target} is not installed here")
    if installed != plan.version:
        raise PlanInvalid(f"it was built by {plan.target} {plan.version}, and {installed} is installed")
    strange = [sm for sm in here.sms if not _fits(plan, sm)]
    if strange:
        raise PlanInvalid(_strange(plan.sms, strange))
    return data


def _fits(plan: PlanFile, sm: int) -> bool:
    """`same_compute_capability` is the SM itself, on another product; `ampere_plus` goes from 8.0 on."""
    return sm in plan.sms or (plan.compatibility == "ampere_plus" and sm >= _AMPERE)


def _strange(built_for: Sequence[int], here: Sequence[int]) -> str:
    return f"it was built for {_named(built_for)}, and here is {_named(here)}"


def _named(sms: Sequence[int]) -> str:
    return ", ".join(f"SM{sm}" for sm in sms) or "no GPU"
