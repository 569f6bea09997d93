"""Failures as HTTP: status, headers, body, and the word they are counted under."""

import json

import pytest
from trunkline.mux.errors import (
    Cancelled,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    Overloaded,
    ParseError,
    SessionLost,
    TimedOut,
    TrunklineError,
    Unattributable,
    UnknownSession,
    UnsupportedRevision,
    UpstreamFault,
    UpstreamRefused,
    UpstreamUnreachable,
    WorkflowEnded,
)
from trunkline.mux.event_log import Overflow, Trimmed
from trunkline.transports.status import HTTPRefusal, Unauthorized, answer_to

IN_JSON: list[TrunklineError] = [
    InvalidParams("no such parameter"),
    MethodNotFound("no such method"),
    UpstreamFault("not JSON"),
    UpstreamUnreachable("down", executed="no"),
    SessionLost("gone", executed="unknown"),
    Overloaded("too many", limit="max_inflight_per_workflow"),
    Overloaded("too many", limit="max_inflight_per_channel"),
    TimedOut("too long"),
    Unattributable("whose?"),
    Cancelled("cancelled"),
    WorkflowEnded("idle"),
    Overflow("lost"),
]


@pytest.mark.parametrize("error", IN_JSON, ids=repr)
def test_a_legacy_request_that_fails_is_an_error_inside_200(error: TrunklineError) -> None:
    answer = answer_to(error, b'"a\\u0062"')
    assert (answer.status, answer.headers, answer.refused) == (200, [(b"content-type", b"application/json")], "")
    assert b'"id":"a\\u0062"' in answer.body, "the id is spelled as the client spelled it"
    body = json.loads(answer.body)
    assert body["error"]["code"] == error.code
    assert body["error"]["message"] == error.message
    assert body["error"].get("data", {}) == error.data


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (UnknownSession("no such session"), 404, "unknown_session"),
        (Trimmed("no longer held"), 404, "event_log_trimmed"),
        (ParseError("not JSON"), 400, "parse_error"),
        (InvalidRequest("no message"), 400, "invalid_request"),
        (UnsupportedRevision("not served", supported=["2025-11-25"], requested="x"), 400, "unsupported_revision"),
    ],
    ids=lambda value: repr(value),
)
def test_what_is_no_request_of_a_session_is_refused(error: TrunklineError, status: int, word: str) -> None:
    answer = answer_to(error, b"7")
    assert (answer.status, answer.headers, answer.refused) == (status, [(b"content-type", b"application/json")], word)
    body = json.loads(answer.body)
    assert (body["id"], body["error"]["code"]) == (7, error.code)
    assert body["error"].get("data", {}) == error.data


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ("max_workflows_per_user", 429),
        ("max_workflows_per_tenant", 429),
        ("max_channels_per_user", 429),
        ("max_workflows", 503),
        ("draining", 503),
        ("opening", 503),
    ],
)
def test_a_limit_at_admission_is_named_and_says_when_to_come_back(limit: str, status: int) -> None:
    answer = answer_to(Overloaded("full", limit=limit), b"1")
    assert (answer.status, answer.refused) == (status, limit)
    assert int(dict(answer.headers)[b"retry-after"]) > 0
    error = json.loads(answer.body)["error"]
    assert (error["code"], error["data"]) == (-31003, {"limit": limit})


def test_a_refusal_of_the_transport_keeps_its_status_and_headers() -> None:
    answer = answer_to(HTTPRefusal(405, "method", "use POST", headers=[(b"allow", b"POST")]))
    assert (answer.status, answer.refused) == (405, "method")
    assert answer.headers == [(b"content-type", b"application/json"), (b"allow", b"POST")]
    assert json.loads(answer.body) == {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "use POST"}}
    assert answer_to(HTTPRefusal(415, "content_type", "JSON")).headers == [(b"content-type", b"application/json")]


def test_an_unauthorized_request_is_challenged() -> None:
    answer = answer_to(Unauthorized("no token", challenge='Bearer realm="x"'))
    assert (answer.status, answer.refused) == (401, "unauthorized")
    assert dict(answer.headers)[b"www-authenticate"] == b'Bearer realm="x"'
    assert json.loads(answer.body)["error"]["message"] == "no token"


def test_the_servers_own_refusal_comes_word_for_word() -> None:
    answer = answer_to(UpstreamRefused(b'{"code":-32602,"message":"no","x":1e400}'), b"1")
    assert (answer.status, answer.refused) == (200, "")
    assert b'"error":{"code":-32602,"message":"no","x":1e400}' in answer.body


@pytest.mark.parametrize("error", [ValueError("a secret"), KeyError("a secret"), RuntimeError("a secret")], ids=repr)
def test_a_defect_tells_nothing_of_itself(error: Exception) -> None:
    answer = answer_to(error, b"1")
    assert (answer.status, answer.refused) == (500, "internal")
    assert b"secret" not in answer.body
    assert json.loads(answer.body)["error"]["message"] == "internal error"
