"""A limit of one CPU where there are two: one thread is what the server takes, and it loses nothing by that.

Under a limit, the most rows a second are the limit over the CPU time of a row. That time is compared, not the rows a
second themselves: where others keep the processors busy, two threads are scheduled more often than one, limit or not.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from tests.deploy.support.containers import Container, cache_folder, give, running_container
from tests.deploy.support.image import cpu_image
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(900)  # the first test waits for the image, and on first use for its base
MODEL, ROWS, REQUESTS, CLIENTS = "fashion_float", 32, 100, 2
SLACK = 1.1
"""The same is computed by one thread as by two; only waiting for each other comes on top. So one thread takes less, and
what is allowed above that is noise, of which the least of several rounds has little."""
ROUNDS = 4
CPU_TIME = """
import os, pathlib
(child,) = pathlib.Path("/proc/1/task/1/children").read_text().split()
ticks = pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
print(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
"""
"""Of the server, in seconds: user and system, all threads."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Container, Container]]:
    """As it is, and told to use two threads; one CPU each."""
    folder = tmp_path_factory.mktemp("threads")
    shutil.copytree(ROOT / "model_repo" / MODEL, folder / "models" / MODEL)
    give(folder / "models")
    with ExitStack() as stack:
        started = [
            stack.enter_context(running_container(cpu_image(), folder / "models", cache_folder(folder), env=env))
            for env in ({}, {"BITSERVE_THREADS": "2"})
        ]
        for container in started:
            container.wait_ready(f"{MODEL}/1")
        yield started[0], started[1]


def encoded(images: np.ndarray) -> bytes:
    """A request of the binary extension: a header in JSON, one line here, then the tensor."""
    size = {"binary_data_size": images.nbytes}
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "parameters": size}
    return json.dumps({"inputs": [tensor]}).encode() + b"\n" + images.tobytes()


def send(port: int, count: int, body: bytes) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for _ in range(count):
            headers = {"Inference-Header-Content-Length": str(body.index(b"\n") + 1)}
            connection.request("POST", f"/v2/models/{MODEL}/infer", body, headers)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said


def cpu_us(container: Container, body: bytes) -> float:
    """CPU time of a row, over REQUESTS by CLIENTS, so that one always waits."""
    begun_s = float(container.python(CPU_TIME))
    with ThreadPoolExecutor(CLIENTS) as pool:
        for ended in [pool.submit(send, container.port, REQUESTS // CLIENTS, body) for _ in range(CLIENTS)]:
            ended.result()
    return (float(container.python(CPU_TIME)) - begun_s) / REQUESTS / ROWS * 1e6


def test_one_thread_is_no_slower_than_two(pair: tuple[Container, Container]) -> None:
    one, two = pair
    for container, threads in ((one, 1), (two, 2)):
        found = json.loads(container.run("bitserve", "inspect", MODEL, "--json"))
        assert found["manifest"]["threads"] == threads
    with np.load(ROOT / "model_repo/fashion_cnn/heldout.npz") as held:
        body = encoded((held["image"][:ROWS] / 255).astype(np.float32))
    least_us = {container: min(cpu_us(container, body) for _ in range(ROUNDS)) for container in (one, two)}
    print(f"{least_us[one]:.0f} us of CPU a row with one thread, {least_us[two]:.0f} with two")
    assert 0 < least_us[one] <= SLACK * least_us[two]
