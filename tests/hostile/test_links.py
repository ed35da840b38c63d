"""Symbolic links dropped into a repository: none is followed to a file, and nothing is written through one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.cli_compile import _without_links
from engines import repository
from engines.errors import BadRepository, ModelRefused
from engines.files import open_plain
from engines.frontend.guard import check_file
from engines.request import BuildRequest
from engines.spec import Spec, encode_spec
from engines.zipped import members
from tests.support.onnx_models import linear, place
from tests.support.servers import Server, running, until
from tests.support.streams import Stream, asking
from tests.support.uploads import send

FILES = ("model.onnx", "spec.json", "calibration.npz", "validation.npz")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder with all its files, each of them whole."""
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(linear().SerializeToString())
    (folder / "spec.json").write_bytes(encode_spec(Spec(max_batch=4)))
    for name in ("calibration.npz", "validation.npz"):
        np.savez(folder / name, x=np.ones((2, 16), np.float32))
    BuildRequest.of_folder(folder).key()
    return folder


def as_link(path: Path) -> Path:
    """The file goes elsewhere, and a link to it takes its place."""
    target = path.parent.parent.parent / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_a_link_is_refused_by_its_name(name: str, version: Path) -> None:
    target = as_link(version / name)
    request = BuildRequest.of_folder(version)
    with pytest.raises(ModelRefused, match=f"{name} is a symbolic link"):
        request.key()
    with pytest.raises(ModelRefused, match=f"{name} is a symbolic link"):
        repository.publish_version(version.parent.parent, "other", 1, request.files(), b"{}")
    assert not (version.parent.parent / "other" / "1").exists()
    target.unlink()
    with pytest.raises(ModelRefused, match=f"{name} is a symbolic link"):
        BuildRequest.of_folder(version).key()  # one that leads nowhere is not passed over


def test_the_compiler_follows_none_either(version: Path) -> None:
    for name in ("model.onnx", "calibration.npz"):
        as_link(version / name)
    with pytest.raises(ModelRefused, match=r"model\.onnx is a symbolic link"):
        check_file(version / "model.onnx")
    with pytest.raises(ModelRefused, match=r"calibration\.npz is a symbolic link"):
        members(version / "calibration.npz")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ModelRefused, match="is not a regular file"):
            open_plain(path)


def test_a_model_folder_that_leads_out_takes_no_version(version: Path, tmp_path: Path) -> None:
    models, outside = tmp_path / "models", tmp_path / "outside"
    models.mkdir()
    outside.mkdir()
    (models / "out").symlink_to(outside)
    (models / "up").symlink_to("../outside")
    files = BuildRequest.of_folder(version).files()
    for model in ("out", "up"):
        with pytest.raises(BadRepository, match="a symbolic link that leads out of the repository"):
            repository.publish_version(models, model, 1, files, b"{}")
        with pytest.raises(BadRepository, match="a symbolic link that leads out of the repository"):
            repository.next_version(models, model)
    assert not list(outside.iterdir())
    (models / "same").symlink_to("real")
    (models / "real").mkdir()
    assert repository.publish_version(models, "same", 1, files, b"{}").is_dir()


def test_a_link_on_the_command_line_is_the_caller_s_own(version: Path) -> None:
    target = as_link(version / "model.onnx")
    request = _without_links(BuildRequest(version / "model.onnx", None, version / "calibration.npz"))
    assert request == BuildRequest(target, None, version / "calibration.npz")
    request.key()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    place(folder, "honest", linear())
    with running(folder, "--watch-s", "0.1") as live:
        live.wait_ready("honest")
        yield live


@pytest.fixture(scope="module")
def stream(server: Server) -> Iterator[Stream]:
    with asking(server, "honest", clients=2) as asked:
        until(lambda: bool(asked.seen), "a first answer")
        yield asked
    assert not asked.failed, asked.failed[:3]


def test_a_link_that_is_dropped_in_is_named_and_not_served(server: Server, stream: Stream, tmp_path: Path) -> None:
    secret = tmp_path / "secret.onnx"
    secret.write_bytes(linear(scale=3).SerializeToString())
    (server.repository / "linked" / "1").mkdir(parents=True)
    (server.repository / "linked" / "1" / "model.onnx").symlink_to(secret)
    until(lambda: server.state("linked") == "UNAVAILABLE", "the link is refused")
    reason = server.index()["linked", "1"]["reason"]
    assert reason == "model.onnx is a symbolic link; put the file itself there"
    assert not stream.failed, stream.failed[:3]


def test_an_upload_writes_nothing_outside(server: Server, stream: Stream, tmp_path: Path) -> None:
    place(tmp_path, "outside", linear(scale=3))
    (server.repository / "leaving").symlink_to(tmp_path / "outside")
    before = sorted(tmp_path.rglob("*"))
    until(lambda: server.state("leaving") == "UNAVAILABLE", "its folder is refused")
    assert "leads out of the repository" in server.index()["leaving", "1"]["reason"]
    answer = send(server, "leaving", linear(scale=5).SerializeToString())
    assert (answer.status_code, "leads out of the repository" in answer.text) == (400, True), answer.text
    assert sorted(tmp_path.rglob("*")) == before
    assert not stream.failed, stream.failed[:3]
