"""The same server through `tritonclient.http.aio`, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from tests.conformance.conftest import Target
from tests.conformance.tensors import pair
from tests.support.servers import ADMIN

Work = Callable[[aio.InferenceServerClient], Awaitable[Any]]


def _with_client(target: Target, work: Work) -> Any:
    async def run() -> Any:
        async with aio.InferenceServerClient(target.address) as client:
            return await work(client)

    return asyncio.run(run())


def _check(result: Any, first: np.ndarray, second: np.ndarray) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), first + second)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), first - second)


def test_control_plane(target: Target, model: str) -> None:
    async def work(client: aio.InferenceServerClient) -> None:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(model)
        assert not await client.is_model_ready("no_such_model")
        assert (await client.get_server_metadata())["extensions"]
        version = (await client.get_model_metadata(model))["versions"][-1]
        assert (await client.get_model_config(model, version))["name"] == model
        assert model in {entry["name"] for entry in await client.get_model_repository_index()}
        assert (await client.get_inference_statistics(model))["model_stats"][0]["name"] == model
        assert "log_info" in await client.get_log_settings()

    _with_client(target, work)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_inference(target: Target, add_sub: str, binary: bool, coding: str | None) -> None:
    async def work(client: aio.InferenceServerClient) -> None:
        first, second, inputs = pair(rows=2, binary=binary, module=aio)
        wanted = [aio.InferRequestedOutput(name, binary_data=binary) for name in ("OUTPUT0", "OUTPUT1")]
        result = await client.infer(
            add_sub,
            inputs,
            outputs=wanted,
            request_id="one",
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        _check(result, first, second)
        assert result.get_response()["id"] == "one"

    _with_client(target, work)


def test_default_outputs_and_options(target: Target, add_sub: str) -> None:
    async def work(client: aio.InferenceServerClient) -> None:
        first, second, inputs = pair(module=aio)
        options = {"priority": 1, "timeout": 10_000_000, "sequence_id": 3, "sequence_start": True}
        _check(await client.infer(add_sub, inputs, parameters={"mine": 1}, **options), first, second)

    _with_client(target, work)


def test_many_at_once_each_get_their_own_rows(target: Target, add_sub: str) -> None:
    async def work(client: aio.InferenceServerClient) -> None:
        asked = [pair(rows=1 + seed % 4, seed=seed, module=aio) for seed in range(64)]
        answers = await asyncio.gather(*(client.infer(add_sub, inputs) for _, _, inputs in asked))
        for (first, second, _), answer in zip(asked, answers, strict=True):
            _check(answer, first, second)

    _with_client(target, work)


def test_errors_have_the_servers_words(target: Target, add_sub: str) -> None:
    async def work(client: aio.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="unknown model: 'no_such_model' is not found"):
            await client.infer("no_such_model", pair(module=aio)[2])
        with pytest.raises(InferenceServerException, match="expected 2 inputs but got 1 inputs"):
            await client.infer(add_sub, pair(module=aio)[2][:1])
        assert await client.is_server_live()

    _with_client(target, work)


def test_unload_and_load(target: Target, model: str) -> None:
    async def work(client: aio.InferenceServerClient) -> None:
        if not target.ours:
            pytest.skip("tried by the synchronous client, which skips where models cannot be changed")
        await client.unload_model(model, headers=ADMIN)
        assert not await client.is_model_ready(model)
        await client.load_model(model, headers=ADMIN)
        assert await client.is_model_ready(model)

    _with_client(target, work)
