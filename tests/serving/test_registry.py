"""Which endpoint answers for a name, and the words where none does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from app.serving.endpoint import Endpoint
from app.serving.errors import ModelNotReady, UnknownModel
from app.serving.registry import ModelState, Registry, Version


def endpoint(name: str) -> Endpoint:
    return cast(Any, name)


def registry(**states: str) -> Registry:
    """Model m; `v2="READY"` is its version 2, with "endpoint 2" where READY or UNLOADING."""
    made = Registry()
    for key, state in states.items():
        number = int(key[1:])
        serves = state in ("READY", "UNLOADING")
        reason = f"why {number}" if state == "UNAVAILABLE" else ""
        made.set(Version("m", number, ModelState(state), reason, endpoint(f"endpoint {number}") if serves else None))
    return made


def test_the_newest_version_that_serves_answers() -> None:
    made = registry(v2="READY", v10="READY", v9="READY", v11="LOADING", v12="UNAVAILABLE", v13="UNLOADING")
    assert made.resolve("m") == "endpoint 10"


def test_a_version_that_is_asked_for_answers() -> None:
    assert registry(v1="READY", v2="READY").resolve("m", 1) == "endpoint 1"


@pytest.mark.parametrize(
    ("states", "number", "error", "message"),
    [
        ({}, None, UnknownModel, "Request for unknown model: 'm' is not found"),
        ({}, 1, UnknownModel, "Request for unknown model: 'm' is not found"),
        ({"v1": "READY"}, 7, UnknownModel, "Request for unknown model: 'm' version 7 is not found"),
        ({"v1": "UNAVAILABLE"}, 1, UnknownModel, "Request for unknown model: 'm' version 1 is not found: why 1"),
        ({"v1": "LOADING"}, 1, ModelNotReady, "Request for unknown model: 'm' version 1 is not at ready state"),
        ({"v1": "UNLOADING"}, 1, ModelNotReady, "Request for unknown model: 'm' version 1 is not at ready state"),
        ({"v1": "LOADING", "v2": "UNAVAILABLE"}, None, ModelNotReady, "model 'm' is loading; it is not at ready state"),
        ({"v1": "UNLOADING"}, None, UnknownModel, "Request for unknown model: 'm' has no available versions"),
        (
            {"v1": "UNAVAILABLE", "v2": "UNAVAILABLE"},
            None,
            UnknownModel,
            "Request for unknown model: 'm' has no available versions (version 1: why 1; version 2: why 2)",
        ),
    ],
)
def test_where_nothing_answers_the_words_are_tritons(
    states: dict[str, str], number: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        registry(**states).resolve("m", number)
    assert str(raised.value) == message


def test_a_ready_version_without_an_endpoint_is_not_ready() -> None:
    made = Registry()
    made.set(Version("m", 1, ModelState.READY))
    with pytest.raises(ModelNotReady):
        made.resolve("m")


def test_versions_are_listed_in_order_and_models_by_name() -> None:
    made = registry(v10="READY", v9="LOADING")
    made.set(Version("a", 1, ModelState.UNAVAILABLE))
    assert [(version.model, version.number) for version in made.all()] == [("a", 1), ("m", 9), ("m", 10)]
    assert made.endpoints() == ["endpoint 10"]
    assert made.versions("none") == []


def test_a_dropped_version_is_unknown_and_so_is_a_model_without_versions() -> None:
    made = registry(v1="READY", v2="READY")
    made.drop("m", 2)
    assert made.get("m", 2) is None
    assert made.resolve("m") == "endpoint 1"
    made.drop("m", 1)
    made.drop("m", 1)
    with pytest.raises(UnknownModel, match="'m' is not found"):
        made.resolve("m")


def test_setting_a_version_again_replaces_it() -> None:
    made = registry(v1="LOADING")
    made.set(Version("m", 1, ModelState.READY, endpoint=endpoint("new")))
    assert made.resolve("m") == "new"
