"""A plan for GPUs is native code to its library: what this installation did not make, or does not fit, is not read."""

from __future__ import annotations

import hashlib
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from app.settings import Settings
from engines.errors import PlanInvalid
from engines.handover import MANIFEST_FILE
from engines.manifest import PlanFile, decode, encode
from engines.repository import PlanCache
from engines.runtime.plans import Here, Unfit, read_plan, unfit_plans
from engines.signature import KEY_FILE, SIGNATURE_FILE, key_in, sign
from tests.hostile.test_handover import BLOB, KEY, manifest

DATA = b"vtrt" + bytes(range(256)) * 40
SECRET = b"0123456789abcdef"
FILE = "tensorrt-rtx.plan"
PLAN = PlanFile(
    target="tensorrt-rtx", file=FILE, sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA), precision="int8",
    version="1.7.1.116", sms=(80, 86), profiles=(),
)  # fmt: skip
HERE = Here({"tensorrt-rtx": "1.7.1.116"}, (86,))


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    """One that took over what a compile has left."""
    made = PlanCache(tmp_path / "cache", plan_key=SECRET)
    with made.handover(KEY) as folder:
        (folder / "engine.blob").write_bytes(BLOB)
        (folder / FILE).write_bytes(DATA)
        (folder / MANIFEST_FILE).write_bytes(encode(msgspec.structs.replace(manifest(), plans=(PLAN,))))
        made.adopt(folder, KEY)
    return made


def refusal(cache: PlanCache, here: Here = HERE, key: bytes | None = SECRET) -> str:
    with pytest.raises(PlanInvalid) as refused:
        read_plan(cache.entry(KEY), decode((cache.entry(KEY) / MANIFEST_FILE).read_bytes()).plans[0], key, here)
    return str(refused.value)


def test_a_plan_that_was_made_here_and_fits_is_read(cache: PlanCache) -> None:
    assert read_plan(cache.entry(KEY), PLAN, SECRET, HERE) == DATA
    assert read_plan(cache.entry(KEY), PLAN, SECRET, HERE._replace(sms=())) == DATA, "a machine with no GPU keeps it"


@pytest.mark.parametrize("place", [0, 5, len(DATA) // 2, len(DATA) - 1])
def test_one_flipped_bit_is_not_read(cache: PlanCache, place: int) -> None:
    data = bytearray(DATA)
    data[place] ^= 1
    (cache.entry(KEY) / FILE).write_bytes(data)
    assert "not those that were signed" in refusal(cache)


def forged(cache: PlanCache, **changes: object) -> None:
    """A manifest that is whole and seals itself, of who has no key."""
    found = decode((cache.entry(KEY) / MANIFEST_FILE).read_bytes())
    plan = msgspec.structs.replace(found.plans[0], **changes)
    (cache.entry(KEY) / MANIFEST_FILE).write_bytes(encode(msgspec.structs.replace(found, plans=(plan,))))


def other_plan(cache: PlanCache) -> None:
    (cache.entry(KEY) / FILE).write_bytes(b"evil")
    forged(cache, sha256=hashlib.sha256(b"evil").hexdigest(), size_bytes=4)


def of_another_installation(cache: PlanCache) -> None:
    data = (cache.entry(KEY) / MANIFEST_FILE).read_bytes()
    (cache.entry(KEY) / SIGNATURE_FILE).write_bytes(sign(data, b"another key, as long"))


FORGERIES: dict[str, Callable[[PlanCache], None]] = {
    "another plan under a manifest of its own": other_plan,
    "a manifest that claims other GPUs": lambda cache: forged(cache, sms=(86, 89)),
    "no signature": lambda cache: (cache.entry(KEY) / SIGNATURE_FILE).unlink(),
    "an empty signature": lambda cache: (cache.entry(KEY) / SIGNATURE_FILE).write_bytes(b""),
    "half a signature": lambda cache: (cache.entry(KEY) / SIGNATURE_FILE).write_bytes(
        (cache.entry(KEY) / SIGNATURE_FILE).read_bytes()[:32]
    ),
    "the signature of another installation": of_another_installation,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_was_not_signed_here_is_not_read(cache: PlanCache, name: str) -> None:
    FORGERIES[name](cache)
    assert refusal(cache) == "it does not bear this installation's signature"


def test_without_a_key_nothing_is_read(cache: PlanCache) -> None:
    for key in (None, b""):
        assert refusal(cache, key=key) == "it does not bear this installation's signature"


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (HERE._replace(versions={"tensorrt-rtx": "1.8.0.1"}), "built by tensorrt-rtx 1.7.1.116, and 1.8.0.1 is inst"),
        (HERE._replace(versions={}), "tensorrt-rtx is not installed here"),
        (HERE._replace(sms=(89,)), "built for SM80, SM86, and here is SM89"),
        (HERE._replace(sms=(86, 120)), "built for SM80, SM86, and here is SM120"),
    ],
)
def test_what_does_not_fit_is_not_read(cache: PlanCache, here: Here, said: str) -> None:
    assert said in refusal(cache, here)


@pytest.mark.parametrize(
    ("compatibility", "sm", "fits"),
    [("ampere_plus", 89, True), ("ampere_plus", 75, False), ("same_compute_capability", 89, False),
     ("same_compute_capability", 86, True)],
)  # fmt: skip
def test_levels_of_compatibility_say_what_else_fits(
    cache: PlanCache, compatibility: str, sm: int, *, fits: bool
) -> None:
    plan = msgspec.structs.replace(PLAN, compatibility=compatibility)
    if fits:
        assert read_plan(cache.entry(KEY), plan, SECRET, HERE._replace(sms=(sm,))) == DATA
    else:
        with pytest.raises(PlanInvalid, match=f"here is SM{sm}"):
            read_plan(cache.entry(KEY), plan, SECRET, HERE._replace(sms=(sm,)))


def test_only_what_can_be_built_here_is_built_again(cache: PlanCache) -> None:
    found = decode((cache.entry(KEY) / MANIFEST_FILE).read_bytes())
    folder = cache.entry(KEY)
    assert unfit_plans(folder, found, SECRET, HERE) == []
    missing = unfit_plans(folder, found, SECRET, Here({}, (86,)))
    assert missing == [Unfit("tensorrt-rtx", "tensorrt-rtx is not installed here", rebuild=False)]
    (other,) = unfit_plans(folder, found, SECRET, Here({"tensorrt-rtx": "2"}, ()))
    assert other.rebuild


def test_a_plan_that_is_gone_is_named(cache: PlanCache) -> None:
    (cache.entry(KEY) / FILE).unlink()
    assert refusal(cache) == "it cannot be read: No such file or directory"


def test_a_compile_cannot_sign_what_it_leaves(tmp_path: Path) -> None:
    """It may not even leave a file of that name; and a cache without a key takes plans over unsigned."""
    made = PlanCache(tmp_path / "cache")
    for extra in ({SIGNATURE_FILE: b"x"}, {}):
        with made.handover(KEY) as folder:
            files = {"engine.blob": BLOB, FILE: DATA, **extra}
            for name, data in files.items():
                (folder / name).write_bytes(data)
            (folder / MANIFEST_FILE).write_bytes(encode(msgspec.structs.replace(manifest(), plans=(PLAN,))))
            if extra:
                with pytest.raises(PlanInvalid, match="the compile left 'signature'"):
                    made.adopt(folder, KEY)
            else:
                made.adopt(folder, KEY)
    assert refusal(made) == "it does not bear this installation's signature"


def test_a_plan_takes_the_place_of_another_where_that_is_wanted(cache: PlanCache) -> None:
    for replacing, kept in ((False, "int8"), (True, "fp16")):
        plan = msgspec.structs.replace(PLAN, precision="fp16")
        with cache.handover(KEY) as folder:
            (folder / "engine.blob").write_bytes(BLOB)
            (folder / FILE).write_bytes(DATA)
            (folder / MANIFEST_FILE).write_bytes(encode(msgspec.structs.replace(manifest(), plans=(plan,))))
            assert cache.adopt(folder, KEY, replacing=replacing).plans[0].precision == kept
        assert read_plan(cache.entry(KEY), PLAN, SECRET, HERE) == DATA


def test_all_that_start_at_once_get_one_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    found: list[bytes | None] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(key_in(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0] is not None
    assert len(found[0]) == 64
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE], "nothing else is left"
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_a_key_is_made_only_where_that_is_wanted(tmp_path: Path) -> None:
    assert key_in(tmp_path, make=False) is None
    assert key_in(tmp_path / "absent") is None
    shutil.rmtree(tmp_path)
    assert key_in(tmp_path) is None


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="a plan_key needs 16 characters at least"):
        Settings(plan_key="short")  # type: ignore[arg-type]
