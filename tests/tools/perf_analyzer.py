"""Install and run NVIDIA's real perf_analyzer, so that our HTTP side is tested by a client we did not write.

Everything lands in one cache folder: no package of the system or of the project's environment is changed.
"""

from __future__ import annotations

import email
import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from typing import NamedTuple

VERSION = "2.60.0"
COMMIT = "3a49a23"  # the 2.60.0 wheel's binary calls itself "0.0.0 (commit 3a49a23)": only the commit identifies it
OLDEST_RELEASE = (2, 0)  # pip falls back to an empty 0.1.0 where the real wheel does not fit
BINARY = "perf_analyzer/bin/perf_analyzer"
GLIBC_NEEDED = (2, 38)
DONOR = "trixie"  # the Debian release that lends its loader and libraries to a machine with an older glibc
DONOR_PACKAGES = ("libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libssl3t64")
ALIASES = frozenset({"stable", "oldstable", "oldoldstable"})
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BANNER = re.compile(r"Perf Analyzer Version (\S+) \(commit (\w+)\)")
ONE_LINE = re.compile(r"^deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#\n]+)", re.MULTILINE)
_Done = subprocess.CompletedProcess[str]


class Archive(NamedTuple):
    """Where the machine gets Debian from, and the keyring that signs it."""

    uri: str
    keyring: str


def version_of(text: str) -> tuple[int, ...]:
    """Return the first dotted number in a text, () when there is none."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def identity_fault(release: str, banner: str) -> str | None:
    """Say why this is not the real tool, None when it is: the wheel's release and the binary's banner must both fit."""
    if version_of(release) < OLDEST_RELEASE:
        return f"the installed package is release {release!r}, the placeholder"
    found = BANNER.search(banner)
    if found is None:
        return f"--version printed {banner.strip()[-200:]!r}"
    if version_of(found[1]) < OLDEST_RELEASE and found[2] != COMMIT:
        return f"--version names the unknown build {found[0]!r}"
    return None


def parse_one_line(text: str, codename: str) -> list[Archive]:
    """Read a `.list` file: the archives that hold this release's main component."""
    archives = []
    for options, uri, suite, components in ONE_LINE.findall(text):
        if suite in ALIASES | {codename} and "main" in components.split():
            signed_by = re.search(r"signed-by=(/[^\s,]+)", options)
            archives.append(Archive(uri, signed_by[1] if signed_by else KEYRING))
    return archives


def parse_deb822(text: str, codename: str) -> list[Archive]:
    """Read a `.sources` file: the archives that hold this release's main component."""
    archives = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields = email.message_from_string(stanza.strip())
        words = {name: fields.get(name, "").split() for name in ("Types", "URIs", "Suites", "Components", "Signed-By")}
        if fields.get("Enabled", "yes").strip().lower() in {"no", "false"} or "deb" not in words["Types"]:
            continue
        if "main" in words["Components"] and not (ALIASES | {codename}).isdisjoint(words["Suites"]):
            keyring = next((word for word in words["Signed-By"] if word.startswith("/")), KEYRING)
            archives += [Archive(uri, keyring) for uri in words["URIs"]]
    return archives


def system_archive(etc_apt: Path, codename: str) -> Archive:
    """Return the Debian archive that the machine's own sources files name."""
    lists = [etc_apt / "sources.list", *sorted(etc_apt.glob("sources.list.d/*.list"))]
    archives = [found for path in lists if path.is_file() for found in parse_one_line(path.read_text(), codename)]
    for path in sorted(etc_apt.glob("sources.list.d/*.sources")):
        archives += parse_deb822(path.read_text(), codename)
    if not archives:
        raise _problem(f"no file under {etc_apt} names an archive with {codename} main", "a Debian machine", "add one")
    return min(archives, key=lambda archive: "debian" not in archive.uri)  # third parties use our codename as well


def ensure(cache: Path | None = None) -> list[str]:
    """Return the argv prefix that runs perf_analyzer, installing it on first use.

    Args:
        cache: folder to install into; by default BITSERVE_TEST_CACHE, else `.tools/` in the project root.

    Raises:
        RuntimeError: it cannot be installed here, or what is installed is not the real tool.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise _problem(f"this is {sys.platform} {platform.machine()}", "linux x86_64", "skip what needs perf_analyzer")
    default = os.environ.get("BITSERVE_TEST_CACHE") or Path(__file__).parents[2] / ".tools"
    cache = Path(cache or default).resolve()
    borrow = _glibc() < GLIBC_NEEDED
    target = cache / f"perf-analyzer-{VERSION}{f'-{DONOR}' if borrow else ''}"
    if not target.is_dir():
        try:
            _install_once(target, borrow)
        except (OSError, zipfile.BadZipFile) as exc:
            raise _problem(f"installing failed: {exc!r}", f"a writable {cache}, a sound wheel", "check both") from exc
    _verify(target, f"delete {target}, try again")
    return _argv(target)


def run(args: list[str], timeout_s: float) -> str:
    """Run perf_analyzer and return its stdout; a failure or a timeout raises RuntimeError with the output's tail."""
    return _call([*ensure(), *args], "read the output, and the server's log", timeout_s=timeout_s).stdout


def _install_once(target: Path, borrow: bool) -> None:
    if not target.parent.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / ".gitignore").write_text("*\n")
    with (target.parent / ".perf-analyzer.lock").open("w") as lock:  # closing it lets the next process in
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():  # another one may have built it while this one waited
            _install(target, borrow)


def _install(target: Path, borrow: bool) -> None:
    for stale in target.parent.glob(f".{target.name}.*"):  # left by a killed process: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        scratch, built = Path(name), Path(name, "built")
        wanted = ["--platform", "manylinux_2_38_x86_64", "--python-version", "3.12", f"perf-analyzer=={VERSION}"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        _call([*pip, "--dest", str(scratch), *wanted], "check that pip reaches its package index")
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            wheel.extractall(built)
        if not (built / BINARY).is_file():
            raise _problem(f"the downloaded wheel holds no {BINARY}", f"perf-analyzer {VERSION}", "check pip's index")
        (built / BINARY).chmod(0o755)
        if borrow:
            _borrow_libraries(scratch, built / "root")
        _verify(built, "compare this machine's glibc and the wheel with what this module expects")
        built.rename(target)


def _borrow_libraries(scratch: Path, root: Path) -> None:
    """Unpack a newer loader and its libraries into `root`, through an apt that knows no folder but its own."""
    archive = system_archive(Path("/etc/apt"), platform.freedesktop_os_release().get("VERSION_CODENAME", "?"))
    apt, todo = scratch / "apt", "check that apt-get works and that the keyring knows the release"
    caches = ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg")
    for folder in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", *caches):
        (apt / folder).mkdir(parents=True)
    (apt / "var/lib/dpkg/status").touch()
    (apt / "etc/apt/sources.list").write_text(f"deb [signed-by={archive.keyring}] {archive.uri} {DONOR} main\n")
    network = _call(["apt-config", "dump", "Acquire"], todo).stdout  # the machine's proxy and certificates
    own = f'Dir "{apt}";\nDir::State::status "{apt}/var/lib/dpkg/status";\nAPT::Sandbox::User "root";\n'
    config = apt / "apt.conf"
    config.write_text(network + own)
    _call(["apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update"], todo, APT_CONFIG=str(config))
    _call(["apt-get", "-qq", "download", *DONOR_PACKAGES], todo, cwd=scratch, APT_CONFIG=str(config))
    for package in scratch.glob("*.deb"):
        _call(["dpkg-deb", "-x", str(package), str(root)], "check the free disk space")


def _argv(folder: Path) -> list[str]:
    libraries = folder / "root/usr/lib/x86_64-linux-gnu"
    loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)] if libraries.is_dir() else []
    return [*loader, str(folder / BINARY)]


def _verify(folder: Path, todo: str) -> None:
    shown = _call([*_argv(folder), "--version"], todo, timeout_s=30.0)
    release = next((found.version for found in Distribution.discover(path=[str(folder)])), "")
    if fault := identity_fault(release, shown.stdout + shown.stderr):
        raise _problem(fault, f"perf_analyzer {VERSION} (commit {COMMIT}) or a release >= 2", todo)


def _glibc() -> tuple[int, ...]:
    try:
        return version_of(os.confstr("CS_GNU_LIBC_VERSION") or "")
    except ValueError:  # another C library
        return ()


def _call(command: list[str], todo: str, timeout_s: float = 300.0, cwd: Path | None = None, **env: str) -> _Done:
    shown, env = shlex.join(command), {**os.environ, **env}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=cwd, env=env, check=False)
    except subprocess.TimeoutExpired as exc:
        parts = [part.decode(errors="replace") for part in (exc.stdout, exc.stderr) if isinstance(part, bytes)]
        raise _problem(f"`{shown}` ran out of time", f"an end within {timeout_s:g} s", todo, *parts) from exc
    except OSError as exc:
        raise _problem(f"`{shown}` did not start: {exc}", "a program that runs", todo) from exc
    if done.returncode:
        raise _problem(f"`{shown}` exited with {done.returncode}", "0", todo, done.stdout, done.stderr)
    return done


def _problem(wrong: str, expected: str, todo: str, *output: str) -> RuntimeError:
    tail = "".join(f"\n{part.strip()[-2000:]}" for part in output if part.strip())
    return RuntimeError(f"perf_analyzer: {wrong}; expected {expected}; to do: {todo}.{tail}")


if __name__ == "__main__":
    print(shlex.join(ensure()))
