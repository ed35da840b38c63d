"""What comes with a model: samples and a spec. They are checked at the door and stay with the version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.http.reports import prefers_html
from engines.manifest import Manifest, decode
from tests.support.onnx_models import linear, place
from tests.support.servers import ADMIN, Server, running, until
from tests.support.uploads import arrays, build_of, ended, send

pytestmark = pytest.mark.asks_no_engine
MODEL = linear(scale=3).SerializeToString()
SAMPLES = arrays(x=np.ones((8, 16), np.float32))
LABELLED = arrays(x=np.ones((4, 16), np.float32), labels=np.zeros(4, np.int64))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository"), "--watch-s", "0.1") as live:
        yield live


def plan_of(server: Server, model: str) -> tuple[Path, Manifest]:
    """The folder of a published version's plan, and the manifest."""
    manifest = decode((server.repository / model / "1" / "manifest.json").read_bytes())
    return server.repository / ".cache" / manifest.key, manifest


OF_GPUS = "gpus, buckets, hardware_compatibility and profile_sets are for targets tensorrt-rtx and tensorrt"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"precision": "fp8"}, "spec.precision: Input should be 'auto', 'fp32', 'fp16', 'int8' or 'binary', got 'fp8'"),
        ({"max_batch": 0}, "max_batch must be from 1 to 65536, got 0"),
        ({"max_batch": "8"}, "spec.max_batch: Input should be a valid integer, got '8'"),
        ({"accuracy_budget": -1}, "accuracy_budget must be a finite number from 0 on, got -1"),
        ({"colour": 1}, "spec.colour: there is no such key; expected precision, metric, output, accuracy_budget"),
        ({"inputs": {"x": {"colour": 1}}}, "spec.inputs.x.colour: there is no such key; expected datatype, layout"),
        ({"inputs": {"x": {"scale": [0]}}}, "spec.inputs.x: scale divides; none of its numbers may be 0, got [0]"),
        ({"targets": ["cuda"]}, "spec.targets.0: Input should be 'openvino', 'tensorrt-rtx' or 'tensorrt', got 'cuda'"),
        ({"targets": ["tensorrt"], "gpus": ["ampere"]}, "gpus must be names such as sm86, each once"),
        ({"targets": ["tensorrt"], "buckets": [8, 1]}, "buckets must be rising numbers of rows"),
        ({"gpus": ["sm86"]}, OF_GPUS),
        (
            {"profile_sets": 2},
            OF_GPUS,
        ),
        ({"targets": ["tensorrt"], "profile_sets": 17}, "profile_sets must be from 1 to 16"),
        ("{", "spec is no JSON"),
        ("[" * 100_000, "spec is no JSON"),
        ("[1]", "spec: Input should be an object, got [1]"),
        ("", "part 'spec' is empty"),
        (" " * (2**20 + 1), "part 'spec' has more than 1048576 bytes"),
        ({"metric": "m" * 9999}, "mmm..."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_spec_is_refused_at_once_and_nothing_is_kept(server: Server, spec: Any, said: str) -> None:
    before = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
    answer = send(server, "refused", MODEL, spec)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert len(answer.text) < 500
    assert httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json() == before
    left = server.repository / ".builds"
    assert not left.exists() or not [entry for entry in left.iterdir() if entry.name.startswith(".")]


def test_an_empty_part_is_refused(server: Server) -> None:
    answer = send(server, "refused", MODEL, calibration=b"")
    assert (answer.status_code, "part 'calibration' is empty" in answer.text) == (400, True)


def test_what_came_with_a_model_stays_with_the_version(server: Server) -> None:
    done = ended(server, send(server, "whole", MODEL, {"max_batch": 8}, calibration=SAMPLES, validation=LABELLED))
    assert (done["state"], done["version"]) == ("succeeded", 1)
    assert done["report"] == "/v2/models/whole/versions/1/report"
    folder = server.repository / "whole" / "1"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(found) == {"model.onnx", "manifest.json", "spec.json", "calibration.npz", "validation.npz"}
    assert (found["model.onnx"], found["calibration.npz"], found["validation.npz"]) == (MODEL, SAMPLES, LABELLED)
    assert json.loads(found["spec.json"])["max_batch"] == 8
    plan, manifest = plan_of(server, "whole")
    assert {path.name for path in plan.iterdir()} >= {"engine.blob", "manifest.json"}

    shutil.rmtree(plan)  # any server can make the same plan again from the version's folder alone
    load = f"{server.url}/v2/repository/models/whole/load"
    assert httpx.post(load, headers=ADMIN, timeout=60).status_code == 200
    assert decode((plan / "manifest.json").read_bytes()).key == manifest.key


def test_the_same_upload_is_the_same_build_and_any_other_is_not(server: Server) -> None:
    first = send(server, "same", MODEL, {"max_batch": 8}, calibration=SAMPLES)
    ended(server, first)
    again = send(server, "same", MODEL, ' {"precision": "auto", "max_batch": 8}', calibration=SAMPLES)
    assert (again.status_code, again.headers["location"]) == (202, first.headers["location"])
    others = [
        send(server, "same", MODEL, {"max_batch": 8}),
        send(server, "same", MODEL, {"max_batch": 8}, calibration=arrays(x=np.ones((4, 16), np.float32))),
        send(server, "same", MODEL, calibration=SAMPLES),
        send(server, "other", MODEL, {"max_batch": 8}, calibration=SAMPLES),
    ]
    places = [first.headers["location"], *(answer.headers["location"] for answer in others)]
    assert len(set(places)) == len(places)
    plain = send(server, "plain", MODEL)
    assert send(server, "plain", MODEL, {}).headers["location"] == plain.headers["location"], "a default spec is none"
    for answer in [*others, plain]:
        assert ended(server, answer)["state"] == "succeeded"


def test_a_folder_that_a_user_filled_may_have_a_spec(server: Server) -> None:
    source = place(server.repository, "dropped", linear())
    source.with_name("spec.json").write_text('{"max_batch": 4, "precision": "fp32"}')
    until(lambda: server.state("dropped") == "READY", "it serves")
    source.with_name("spec.json").write_text("{nonsense")
    until(lambda: "the spec cannot be read" in server.index()["dropped", "1"]["reason"], "it is looked at again")
    assert server.state("dropped") == "READY", "what was loaded before still serves"


def test_a_folder_that_asks_for_what_cannot_be_done_says_so(server: Server) -> None:
    source = place(server.repository, "early", linear())
    source.with_name("spec.json").write_text('{"precision": "int8"}')
    until(lambda: server.state("early") == "UNAVAILABLE", "it was looked at")
    assert "precision 'int8' needs calibration samples" in server.index()["early", "1"]["reason"]


# -- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_is_data_or_a_page_and_needs_no_token(server: Server) -> None:
    sent = send(server, "told", linear(scale=5).SerializeToString())
    ended(server, sent)
    path = f"{server.url}/v2/models/told/versions/1/report"
    found = httpx.get(path)
    assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
    assert (found.json()["chosen"], found.json()["candidates"][0]["precision"]) == ("fp32", "fp32")
    plan, _ = plan_of(server, "told")
    assert not (plan / "report.html").exists(), "a page is drawn when somebody asks for it"
    for asked in ({"headers": {"Accept": "text/html,*/*;q=0.8"}}, {"params": {"format": "html"}}):
        page = httpx.get(path, **asked, timeout=60)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.text.startswith("<!doctype html>")
        assert (plan / "report.html").read_text() == page.text, "it is kept"
    json_first = httpx.get(path, params={"format": "json"}, headers={"Accept": "text/html"})
    assert json_first.json() == found.json()
    for name in ("report.json", "report.html"):
        (plan / name).unlink()
    for form in ("json", "html"):
        missing = httpx.get(path, params={"format": form})
        assert (missing.status_code, "report of 'told' version 1" in missing.text) == (404, True)
    assert build_of(server, sent)["report"] is None, "the build names no report that is not there"
    listed = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
    assert [build["report"] for build in listed if build["model"] == "told"] == [None]
    assert httpx.get(path, params={"format": "pdf"}).status_code == 400


@pytest.mark.parametrize(
    "path", ["nothing/versions/1", "told/versions/99", "..%2F/versions/1", "../versions/1", "told/versions/x"]
)
def test_there_is_no_report_of_what_is_not_there(server: Server, path: str) -> None:
    assert httpx.get(f"{server.url}/v2/models/{path}/report").status_code == 404


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True), ("text/html", True),
        ("text/*", True), ("*/*", False), ("", False), ("application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0.5, application/json;q=0.4", True), ("text/html;q=0", False), ("text/html;q=x", False),
        ("TEXT/HTML ; Q=1", True), ("*/*, text/html;q=0.1", False),
    ],
)  # fmt: skip
def test_a_page_is_for_those_who_prefer_one(accept: str, page: bool) -> None:
    assert prefers_html(accept) is page
