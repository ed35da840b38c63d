"""`precision: auto` over HTTP: what was sent with samples to calibrate by ends serving in few bits, with its proof."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.servers import Server, running
from tests.support.uploads import arrays, ended, send

pytestmark = pytest.mark.asks_the_compiler

SAMPLES = Path(__file__).parents[2] / "model_repo" / "fashion_cnn"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def test_the_cnn_sample_ends_in_int8_and_answers_as_well_as_before(server: Server) -> None:
    held = np.load(SAMPLES / "heldout.npz")
    pictures, labels = held["image"].astype(np.float32) / 255, held["labels"]
    done = ended(
        server,
        send(
            server, "cnn", (SAMPLES / "1" / "model.onnx").read_bytes(),
            {"precision": "auto", "metric": "top1", "accuracy_budget": 0.02},
            calibration=arrays(image=pictures[:100]), validation=arrays(image=pictures, labels=labels),
        ),
    )  # fmt: skip
    assert done["state"] == "succeeded", done["error"]
    report = httpx.get(f"{server.url}{done['report']}").json()
    chosen = next(one for one in report["candidates"] if one["name"] == report["chosen"])
    assert chosen["precision"] in ("int8", "mixed")
    assert chosen["loss"] <= 0.02
    assert report["batched"]
    answer = server.infer("cnn", {"image": ("FP32", pictures[:32].tolist())})
    scores = np.array(answer.json()["outputs"][0]["data"]).reshape(32, 10)
    assert (scores.argmax(axis=1) == labels[:32]).mean() > 0.85
    page = httpx.get(f"{server.url}{done['report']}", headers={"accept": "text/html"}, timeout=60)
    assert (page.status_code, report["chosen"] in page.text) == (200, True)
