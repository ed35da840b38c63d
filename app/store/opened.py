"""A store as a server or the command uses it: what is read, written and shared, over one connection."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from app.store.bucket import Bucket, open_bucket
from app.store.shared_plans import SharedPlans
from app.store.versions import StoreVersions
from app.store.writer import Writer

__all__ = ["OpenStore", "open_store"]


class OpenStore(NamedTuple):
    """`plans` is None without a key of the server's own: nobody else could read what a key that was made here signs."""

    bucket: Bucket
    writer: Writer
    versions: StoreVersions
    plans: SharedPlans | None


def open_store(url: str, mirror: Path, plan_key: bytes | None) -> OpenStore:
    """Nothing is asked of it yet. Raises StoreError for an address that is none."""
    bucket = open_bucket(url)
    writer = Writer(bucket)
    plans = SharedPlans(bucket, writer, plan_key) if plan_key else None
    return OpenStore(bucket, writer, StoreVersions(writer, mirror), plans)
