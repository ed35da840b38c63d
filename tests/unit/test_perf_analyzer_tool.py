"""The pure parts of the perf_analyzer installer: reading apt's sources, telling the real tool from a placeholder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools import perf_analyzer as tool

REAL = "Perf Analyzer Version 0.0.0 (commit 3a49a23)\n"
LIST = """\
# deb http://commented.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/keys/own.gpg] http://one.example/debian bookworm main contrib  # ours
deb http://one.example/debian-security bookworm-security main
deb http://tools.example/linux bookworm stable
"""
SOURCES = """\
# a comment before the first stanza
Types: deb deb-src
URIs: http://two.example/debian
# a comment between two fields
 http://three.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/two.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://inline.example/debian
Suites: oldstable
Components: contrib main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [("glibc 2.36", (2, 36)), ("2.60.0", (2, 60, 0)), ("no number", ()), ("2.9", (2, 9))],
)
def test_version_is_compared_by_number(text: str, version: tuple[int, ...]) -> None:
    assert tool.version_of(text) == version
    assert (tool.version_of(text) < (2, 38)) == (text != "2.60.0")


def test_one_line_sources_give_the_release_archive_only() -> None:
    assert tool.parse_one_line(LIST, "bookworm") == [tool.Archive("http://one.example/debian", "/keys/own.gpg")]


def test_deb822_sources_give_every_enabled_archive() -> None:
    assert tool.parse_deb822(SOURCES, "bookworm") == [
        tool.Archive("http://two.example/debian", "/keys/two.gpg"),
        tool.Archive("http://three.example/debian", "/keys/two.gpg"),
        tool.Archive("http://inline.example/debian", tool.KEYRING),
    ]


def test_debian_comes_before_a_third_party_with_the_same_codename(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "aaa.list").write_text("deb https://vendor.example bookworm main\n")
    (parts / "ignored.list.disabled").write_text("deb https://disabled.example/debian bookworm main\n")
    (parts / "debian.sources").write_text(SOURCES)
    assert tool.system_archive(tmp_path, "bookworm").uri == "http://two.example/debian"


def test_a_machine_without_debian_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"no file under {tmp_path} names an archive with bookworm main")):
        tool.system_archive(tmp_path, "bookworm")


@pytest.mark.parametrize(
    ("release", "banner", "fault"),
    [
        ("2.60.0", REAL, None),
        ("2.61.0", "Perf Analyzer Version 2.61.0 (commit abcdef0)", None),
        ("2.60.0", "Perf Analyzer Version 0.0.0 (commit abcdef0)", "unknown build"),
        ("2.60.0", "", "--version printed ''"),
        ("0.1.0", REAL, "placeholder"),
        ("", REAL, "placeholder"),
    ],
)
def test_only_the_real_tool_is_accepted(release: str, banner: str, fault: str | None) -> None:
    found = tool.identity_fault(release, banner)
    assert found is None if fault is None else fault in (found or "")
