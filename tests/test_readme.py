"""README is true: its settings table is the settings, and its examples print what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.support.servers import TOKEN, Server, running

ROOT = Path(__file__).parent.parent
EXAMPLES = ("letter", "fashion", "vowels", "triton")
README = ROOT / "README.md"


def settings_table() -> str:
    """The table as README must have it: `python -m tests.test_readme` writes it there."""
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else str(field.default)
        lines.append(f"| `{name}` | `{default}` | {field.description} |")
    return "\n".join(lines)


def between(text: str, name: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    return text.split(begin, 1)[1].split(end, 1)[0].strip()


def test_settings_table_has_every_setting_as_it_is() -> None:
    assert between(README.read_text(), "settings") == settings_table()


def test_every_setting_has_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(ROOT / "model_repo", "--cache", str(tmp_path_factory.mktemp("cache"))) as started:
        started.wait_ready("fashion_cnn", "japanese_vowels", "letter_mlp")
        yield started


def example(name: str) -> tuple[str, str, str, str]:
    """Language and code of an example, kind and text of its shown output."""
    found = re.search(
        rf"<!-- example: {name} -->\n```(\w+)\n(.*?)```\n```(\w+)\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert found, name
    return found[1], found[2], found[3], found[4]


def run_example(name: str, server: Server) -> str:
    language, code, _, _ = example(name)
    code = code.replace("localhost:8000", f"127.0.0.1:{server.port}")
    command = ["sh", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "BITSERVE_ADMIN_TOKEN": TOKEN}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout
    return printed.replace(f"127.0.0.1:{server.port}", "localhost:8000")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_readme_shows(name: str, server: Server) -> None:
    printed, shown = run_example(name, server), example(name)[3]
    if shown.startswith("{"):
        assert same(json.loads(printed), json.loads(shown))
    else:
        assert words(printed) == words(shown)


def test_a_model_is_sent_as_readme_shows(tmp_path: Path) -> None:
    with running(tmp_path) as started:
        for name in ("send", "report"):
            assert run_example(name, started) == example(name)[3]
        assert started.state("letters") == "READY"


def test_fewer_bits_are_found_as_readme_shows(tmp_path: Path) -> None:
    made = ROOT / "calibration.npz"
    try:
        with running(tmp_path) as started:
            assert run_example("fewer", started) == example("fewer")[3]
    finally:
        made.unlink(missing_ok=True)


def words(text: str) -> list[str]:
    """Words; numbers with a point to three significant digits."""
    return [f"{float(word):.3g}" if re.fullmatch(r"-?\d+\.\d+", word) else word for word in text.split()]


def same(got: object, want: object) -> bool:
    """Equal, but for the last digits of a class's value: `value:index:label`."""
    if isinstance(got, dict) and isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[key], want[key]) for key in want)
    if isinstance(got, list) and isinstance(want, list):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(got, str) and isinstance(want, str) and ":" in want:
        (a, *rest), (b, *others) = got.split(":"), want.split(":")
        return rest == others and abs(float(a) - float(b)) < 1e-3
    return got == want


def write() -> None:
    """Put the settings table and the examples' real output into README."""
    text = README.read_text()
    begin, end = "<!-- settings: begin -->", "<!-- settings: end -->"
    text = text.split(begin)[0] + f"{begin}\n{settings_table()}\n{end}" + text.split(end, 1)[1]
    README.write_text(text)
    with running(ROOT / "model_repo") as started:
        started.wait_ready("fashion_cnn", "japanese_vowels", "letter_mlp")
        for name in EXAMPLES:
            language, code, block, shown = example(name)
            printed = run_example(name, started).rstrip("\n") + "\n"
            old = f"```{language}\n{code}```\n```{block}\n{shown}```"
            text = README.read_text()
            assert old in text, name
            README.write_text(text.replace(old, f"```{language}\n{code}```\n```{block}\n{printed}```"))


if __name__ == "__main__":
    write()
