"""What an `initialize` fixes, and what a later one may not change while its session is in use."""

from typing import Any

import msgspec
import pytest
from harness.muxing import initialize, request
from trunkline.mux.errors import InvalidParams
from trunkline.mux.handshake import difference, is_mute, read_handshake
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


@pytest.mark.parametrize("params", [None, {}, {"protocolVersion": 1}, {"protocolVersion": "x", "capabilities": []}])
def test_what_is_no_handshake(params: Any) -> None:
    with pytest.raises(InvalidParams):
        read_handshake(request("initialize", params, id=b"0"), {})


def test_g10_what_is_kept_of_it_is_bounded() -> None:
    assert read_handshake(initialize(vendor="x" * 65_000), {})
    with pytest.raises(InvalidParams, match="larger than 65536 bytes"):
        read_handshake(initialize(vendor="x" * 65_536), {})


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
