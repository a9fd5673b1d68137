"""The OpenAPI document, and what the server makes of anything that fits it or does not."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from served import Running

# Read before a server's threads are there: Python 3.11 fails where two threads parse at once, and pytest parses this plugin anew.
importlib.import_module("schemathesis.specs.openapi.schemas")
load_all_checks()
_TYPES = schemathesis.checks.CHECKS.get_by_names(["status_code_conformance", "content_type_conformance", "response_schema_conformance"])


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_route_is_in_it(server: Running) -> None:
    found = server.get("/openapi.json").json()["paths"]
    assert {path for path in found if path.startswith("/v1/")} == {
        "/v1/answer", "/v1/chat/completions", "/v1/classify", "/v1/completions", "/v1/embeddings", "/v1/fill-mask", "/v1/models",
        "/v1/models/{model}", "/v1/moderations", "/v1/token-classify",
    }  # fmt: skip
    for methods in found.values():
        for operation in methods.values():
            assert "422" not in operation["responses"]


POSTS = ("answer", "chat/completions", "classify", "completions", "embeddings", "fill-mask", "moderations", "token-classify")
GETS = ("/health", "/metrics", "/ready", "/v1/models", "/v1/models/{model}")
OPERATIONS = [*((f"/v1/{path}", "POST") for path in POSTS), *((path, "GET") for path in GETS)]


def assert_it_holds(document: Any, path: str, method: str, examples: int) -> None:
    """Requests that fit the document, and requests that do not."""
    for mode in GenerationMode:

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None, phases=[Phase.generate])
        @given(case=document[path][method].as_strategy(generation_mode=mode))
        def attempt(case: Any) -> None:
            _try(case)

        try:
            attempt()
        except Unsatisfiable:  # without parameters there is nothing that does not fit
            assert mode == GenerationMode.NEGATIVE
            assert method == "GET"


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_nothing_makes_it_fail(document: Any, path: str, method: str) -> None:
    assert_it_holds(document, path, method, 5)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_nothing_makes_it_fail_for_long(document: Any, path: str, method: str) -> None:
    assert_it_holds(document, path, method, 300)


def _try(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body.pop("model", None)  # by its name hardly any model would be met
        if "max_tokens" not in case.body or isinstance(case.body["max_tokens"], int):
            case.body["max_tokens"] = 4
        case.body.pop("max_completion_tokens", None)
    streams = isinstance(case.body, dict) and case.body.get("stream")
    case.call_and_validate(checks=[not_a_server_error] if streams else [not_a_server_error, *_TYPES], timeout=60)


def test_a_server_that_fails_would_be_found(server: Running) -> None:
    routes = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    models, server.state.models = server.state.models, None
    try:
        with pytest.raises(BaseException, match="Server error"):
            routes["/v1/models"]["GET"].Case().call_and_validate(checks=[not_a_server_error])
    finally:
        server.state.models = models
    routes["/health"]["GET"].Case().call_and_validate(checks=[not_a_server_error])
