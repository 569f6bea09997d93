"""What an `initialize` fixes, what a later one may not change while its session is in use, what a server may say."""

import contextlib
import sys
from typing import Any

import msgspec
import pytest
from harness.muxing import initialize, request
from trunkline.mux import handshake
from trunkline.mux.errors import InvalidParams, RevisionNotServed, TrunklineError, UpstreamFault, UpstreamRefused
from trunkline.mux.handshake import difference, is_mute, read_answer, read_handshake, repeats
from trunkline.mux.limits import MAX_GREETING_BYTES
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import WorkflowRecord


def test_what_is_fixed() -> None:
    message = initialize("2025-06-18", {"roots": {}, "sampling": {}})
    fixed = read_handshake(message, {"x-tenant": "a", "x-app": "b"})
    assert fixed.revision == "2025-06-18"
    assert fixed.params == bytes(message.members["params"])
    assert fixed.session_headers == (("x-app", "b"), ("x-tenant", "a"))
    turned = read_handshake(initialize("2025-06-18", {"sampling": {}, "roots": {}}), {})
    assert turned.capabilities == fixed.capabilities


def test_one_that_comes_again_byte_for_byte_is_the_same() -> None:
    fixed = read_handshake(initialize("2025-06-18", {"roots": {}}), {"x-tenant": "a"})
    assert repeats(fixed, initialize("2025-06-18", {"roots": {}}), {"x-tenant": "a"})
    assert not repeats(fixed, initialize("2025-06-18", {"roots": {}}), {"x-tenant": "b"})
    assert not repeats(fixed, initialize("2025-06-18", {"roots": {}, "sampling": {}}), {"x-tenant": "a"})
    assert not repeats(fixed, request("initialize", None, id=b"0"), {"x-tenant": "a"})


@pytest.mark.parametrize("params", [None, {}, {"protocolVersion": 1}, {"protocolVersion": "x", "capabilities": []}])
def test_what_is_no_handshake(params: Any) -> None:
    with pytest.raises(InvalidParams):
        read_handshake(request("initialize", params, id=b"0"), {})


def test_g10_what_is_kept_of_it_is_bounded() -> None:
    assert read_handshake(initialize(vendor="x" * 65_000), {})
    with pytest.raises(InvalidParams, match="larger than 65536 bytes"):
        read_handshake(initialize(vendor="x" * 65_536), {})


def test_g10_nothing_that_a_client_makes_up_is_kept_for_good() -> None:
    revision = "banana " * 3
    held = read_handshake(initialize(revision), {})
    copy = "".join((*revision,))
    assert sys.intern(copy) is copy, "what is interned is never freed by Python 3.12"
    assert held.revision == revision
    one, two = (read_handshake(initialize("2025-06-18"), {}).revision for _ in range(2))
    assert one is two, "thousands of workflows hold the few that there are"


def test_the_server_is_told_what_the_client_said() -> None:
    said = initialize(capabilities={"roots": {}}, vendor={"n": 10**29})
    asked = handshake.initialize(read_handshake(said, {}))
    assert (asked.kind, asked.method, asked.id) == ("request", "initialize", b"0")
    assert asked.members["params"] == said.members["params"]
    assert asked.encode() == b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":%s}' % asked.members["params"]


def test_who_begins_without_one_is_taken_for_a_client_that_sent_one() -> None:
    made = read_handshake(handshake.own_initialize("2025-06-18", {"roots": {}}, {"name": "n", "version": "1"}), {})
    assert (made.revision, made.capabilities) == ("2025-06-18", b'{"roots":{}}')
    assert msgspec.json.decode(made.params)["clientInfo"] == {"name": "n", "version": "1"}


def answer(**members: Any) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": 1, **members})


def test_what_the_server_says_is_kept_as_it_was_spelled() -> None:
    opened = read_answer(b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-03-26", "n":1.0}}')
    assert opened == ("2025-03-26", b'{"protocolVersion":"2025-03-26", "n":1.0}', "miss")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer(error={"code": 5, "message": "no"}), UpstreamRefused),
        (answer(result={"protocolVersion": "1999-01-01"}), RevisionNotServed),
        (answer(result={"protocolVersion": 1}), UpstreamFault),
        (answer(result={}), UpstreamFault),
    ],
)
def test_what_begins_no_session(said: bytes, error: type[TrunklineError]) -> None:
    with pytest.raises(error):
        read_answer(said)


@pytest.mark.parametrize("begins", [True, False])
def test_g10_what_the_server_says_is_bounded(begins: bool) -> None:
    def said(size: int) -> bytes:
        text = "x" * (size - len(answer(**({"result": result("")} if begins else {"error": error("")}))))
        return answer(result=result(text)) if begins else answer(error=error(text))

    def result(text: str) -> dict[str, Any]:
        return {"protocolVersion": "2025-11-25", "instructions": text}

    def error(text: str) -> dict[str, Any]:
        return {"code": 5, "message": text}

    with contextlib.suppress(UpstreamRefused):
        assert read_answer(said(MAX_GREETING_BYTES)).revision == "2025-11-25"
    with pytest.raises(UpstreamFault):
        read_answer(said(MAX_GREETING_BYTES + 1))


@pytest.mark.parametrize(
    ("later", "headers", "field"),
    [
        (initialize(), {}, None),
        (initialize("2025-06-18"), {}, None),
        (initialize("2025-03-26"), {}, "protocolVersion"),
        (initialize(capabilities={"roots": {}}), {}, "capabilities"),
        (initialize(), {"x": "y"}, "session headers"),
        (initialize(clientInfo={"name": "another", "version": "2"}), {}, None),
    ],
)
def test_how_a_later_one_differs(later: Any, headers: dict[str, str], field: str | None) -> None:
    record = WorkflowRecord("s", ANONYMOUS, "x", None, read_handshake(initialize(), {}))
    negotiated = msgspec.structs.replace(record, revision="2025-06-18")
    assert difference(negotiated, read_handshake(later, headers)) == field


NOTHING = (
    '{"tools":{},"prompts":{"listChanged":false},"resources":{"subscribe":false},"completions":{},"experimental":{}}'
)


@pytest.mark.parametrize(
    ("server", "client", "mute"),
    [
        ("{}", {}, True),
        (NOTHING, {}, True),
        (NOTHING, {"sampling": {}}, False),
        (NOTHING, {"experimental": {}}, False),
        ('{"tools":{"listChanged":true}}', {}, False),
        ('{"resources":{"subscribe":true}}', {}, False),
        ('{"tools":{"vendor":{}}}', {}, False),
        ('{"logging":{}}', {}, False),
        ('{"tasks":{}}', {}, False),
        ('{"experimental":{"x":{}}}', {}, False),
        ('{"tools":[]}', {}, False),
        ("[]", {}, False),
        ('{"tools":{"x":' + "[" * 2000 + "]" * 2000 + "}}", {}, False),
    ],
)
def test_who_has_nothing_to_tell_unasked(server: str, client: dict[str, Any], mute: bool) -> None:
    fixed = read_handshake(initialize(capabilities=client), {})
    assert is_mute(f'{{"capabilities":{server}}}'.encode(), fixed.capabilities) is mute


def test_a_server_that_declares_nothing_is_listened_to() -> None:
    assert not is_mute(b"{}", b"{}")
