"""What a message of 2026-07-28 must hold, what goes on with it, and what a probe's answer tells."""

import base64
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from trunkline.mux import envelope as wire_format
from trunkline.mux import modern
from trunkline.mux.envelope import Envelope
from trunkline.mux.errors import InvalidParams, InvalidRequest, ParseError, UnsupportedRevision
from trunkline.mux.modern import (
    CAPABILITIES_KEY,
    REVISIONS,
    VERSION_KEY,
    HeaderMismatch,
    body_of,
    checked_headers,
    claims,
    decoded,
    encoded,
    error_code,
    is_spoken,
    probe,
    read,
    revisions_of,
    status_of,
    stripped,
)
from trunkline.mux.routing import LEGACY, MODERN

META = {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}


def request(method: str = "tools/list", meta: object = META, **params: Any) -> bytes:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta, **params}}
    return json.dumps(body).encode()


def lines(method: str = "tools/list", **more: str) -> list[tuple[str, str]]:
    found = {"mcp-protocol-version": MODERN, "mcp-method": method}
    found.update({name.replace("_", "-"): value for name, value in more.items()})
    return list(found.items())


def without(name: str, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [line for line in found if line[0] != name]


# Whose a POST is.


@pytest.mark.parametrize("revision", [MODERN, f" {MODERN} ", "2027-01-01", "", "x"])
def test_every_revision_but_those_with_a_handshake_is_of_this_era(revision: str) -> None:
    assert claims(b"", revision)


@pytest.mark.parametrize("revision", [*LEGACY, " 2025-11-25\t"])
def test_a_revision_with_a_handshake_is_not(revision: str) -> None:
    assert not claims(request(), revision)


def test_without_a_header_the_body_tells() -> None:
    assert claims(request(), None)
    assert not claims(request(meta={}), None)
    assert not claims(request(meta={CAPABILITIES_KEY: {}}), None)
    assert not claims(request("initialize"), None)
    notification = {"jsonrpc": "2.0", "method": "notifications/x", "params": {"_meta": META}}
    assert not claims(json.dumps(notification).encode(), None)
    assert not claims(b'{"clientCapabilities":', None)


# What a body holds.


def test_h1_a_body_is_one_request_or_one_notification() -> None:
    assert read(request()).kind == "request"
    assert read(b'{"jsonrpc":"2.0","method":"notifications/x"}').kind == "notification"
    for body in (b"[]", b"[" + request() + b"]", b'{"jsonrpc":"2.0","id":1,"result":{}}'):
        with pytest.raises(InvalidRequest):
            read(body)
    with pytest.raises(ParseError):
        read(b"{")


@pytest.mark.parametrize(
    "meta", [None, [], "x", {}, {VERSION_KEY: MODERN}, {CAPABILITIES_KEY: {}}, {VERSION_KEY.upper(): MODERN}]
)
def test_l19_a_request_names_its_revision_and_its_clients_capabilities(meta: object) -> None:
    with pytest.raises(InvalidParams):
        checked_headers(read(request(meta=meta)), lines())


@pytest.mark.parametrize("params", ["", ',"params":null', ',"params":[]', ',"params":{}'])
def test_l19_a_request_without_meta_is_refused(params: str) -> None:
    with pytest.raises(InvalidParams):
        checked_headers(read(f'{{"jsonrpc":"2.0","id":1,"method":"tools/list"{params}}}'.encode()), lines())


@pytest.mark.parametrize("where", ["params", "_meta"])
def test_g10_what_nobody_looks_at_takes_no_memory(where: str) -> None:
    many = {f"k{n}": n for n in range(100_000)}
    body = request(meta={**META, **many}) if where == "_meta" else request(**many)
    message = read(body)
    tracemalloc.start()
    try:
        checked_headers(message, lines())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


# Header and body.


def test_h2_what_goes_on_is_made_from_the_body() -> None:
    call = read(request("tools/call", name="a b"))
    sent = [*lines("tools/call", mcp_name="=?base64?YSBi?=", mcp_param_x=" 1 "), ("authorization", "Bearer x")]
    assert checked_headers(call, sent) == {
        "mcp-protocol-version": MODERN,
        "mcp-method": "tools/call",
        "mcp-name": "a b",
        "mcp-param-x": "1",
    }


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "t"}, "t"),
        ("prompts/get", {"name": "ключ"}, "=?base64?0LrQu9GO0Yc=?="),
        ("resources/read", {"uri": "test://a?b"}, "test://a?b"),
        ("tasks/get", {"taskId": " t"}, "=?base64?IHQ=?="),
        ("tasks/update", {"taskId": "t"}, "t"),
        ("tasks/cancel", {"taskId": "=?base64?dA==?="}, "=?base64?PT9iYXNlNjQ/ZEE9PT89?="),
        ("tools/list", {"name": "t"}, None),
        ("vendor/x", {"uri": "t"}, None),
    ],
)
def test_h2_the_name_of_each_method(method: str, params: dict[str, str], name: str | None) -> None:
    sent = lines(method) if name is None else lines(method, mcp_name=name)
    made = checked_headers(read(request(method, **params)), sent)
    assert made.get("mcp-name") == name
    assert made["mcp-method"] == method


def test_a_name_that_no_method_asks_for_does_not_go_on() -> None:
    assert "mcp-name" not in checked_headers(read(request()), lines(mcp_name="x"))


@pytest.mark.parametrize("params", [{}, {"name": None}])
def test_a_call_without_a_name_is_the_servers_to_refuse(params: dict[str, None]) -> None:
    assert "mcp-name" not in checked_headers(read(request("tools/call", **params)), lines("tools/call"))


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({"name": "t"}, lines("tools/call")),
        ({"name": "t"}, lines("tools/call", mcp_name="T")),
        ({"name": "t"}, lines("tools/call", mcp_name="")),
        ({"name": "t"}, lines("tools/call", mcp_name="=?base64?dA?=")),
        ({"name": "t"}, lines("tools/call", mcp_name="=?base64?dB==?=")),
        ({"name": "t"}, lines("tools/call", mcp_name="=?base64?_w==?=")),
        ({"name": "\u00ff"}, lines("tools/call", mcp_name="=?base64?/w==?=")),
        ({"name": "ключ"}, lines("tools/call", mcp_name="ключ".encode().decode("latin-1"))),
        ({}, lines("tools/call", mcp_name="t")),
        ({"name": 5}, lines("tools/call", mcp_name="5")),
        ({"name": 5}, lines("tools/call")),
        ({"name": "t"}, lines("tools/list", mcp_name="t")),
        ({"name": "t"}, lines("TOOLS/CALL", mcp_name="t")),
        ({"name": "t"}, without("mcp-method", lines("tools/call", mcp_name="t"))),
        ({"name": "t"}, without("mcp-protocol-version", lines("tools/call", mcp_name="t"))),
        ({"name": "t"}, lines("tools/call", mcp_name="t", mcp_protocol_version="2025-11-25")),
        ({"name": "t"}, [*lines("tools/call", mcp_name="t"), ("mcp-name", "t")]),
        ({"name": "t"}, [*lines("tools/call", mcp_name="t"), ("mcp-method", "tools/call")]),
        ({"name": "t"}, [*lines("tools/call", mcp_name="t"), ("mcp-protocol-version", MODERN)]),
        ({"name": "t"}, [*lines("tools/call", mcp_name="t"), ("mcp-param-a", "1"), ("mcp-param-a", "1")]),
    ],
)
def test_h2_absent_malformed_double_or_other_headers_are_refused(
    params: dict[str, Any], sent: list[tuple[str, str]]
) -> None:
    with pytest.raises(HeaderMismatch):
        checked_headers(read(request("tools/call", **params)), sent)


def test_a_name_that_no_header_could_carry_is_no_text() -> None:
    with pytest.raises(ParseError):
        read(request("tools/call", name="x").replace(b'"x"', rb'"\ud800"'))


def test_a_revision_that_is_no_text_matches_no_header() -> None:
    with pytest.raises(HeaderMismatch):
        checked_headers(read(request(meta={**META, VERSION_KEY: 1})), lines(mcp_protocol_version="1"))


@pytest.mark.parametrize("revision", ["2027-01-01", "2025-11-25"])
def test_l20_a_revision_that_is_not_served_is_told_which_are(revision: str) -> None:
    meta = {**META, VERSION_KEY: revision}
    with pytest.raises(UnsupportedRevision) as refused:
        checked_headers(read(request(meta=meta)), lines(mcp_protocol_version=revision), ["2025-11-25", MODERN])
    assert refused.value.data == {"supported": ["2025-11-25", MODERN], "requested": revision}


def test_a_revision_of_this_era_that_the_server_does_not_speak_is_refused() -> None:
    with pytest.raises(UnsupportedRevision):
        checked_headers(read(request()), lines(), ["2027-01-01"])


def test_e13_a_notification_only_has_to_be_of_this_era() -> None:
    notification = read(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}')
    assert checked_headers(notification, [("mcp-protocol-version", MODERN)])
    with pytest.raises(UnsupportedRevision):
        checked_headers(notification, [("mcp-protocol-version", "2027-01-01")])
    with pytest.raises(UnsupportedRevision):
        checked_headers(notification, [])


@given(st.text())
def test_h2_a_header_carries_every_text(value: str) -> None:
    header = encoded(value) if value.isascii() or _is_text(value) else "x"
    assert all("\x20" <= character <= "\x7e" for character in header)
    assert header == stripped(header)
    if header != "x":
        assert decoded(header) == value


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def test_h2_a_plain_value_is_not_encoded() -> None:
    assert encoded("tools/call") == decoded("tools/call") == "tools/call"
    assert encoded("=?base64?x?=") == "=?base64?" + base64.b64encode(b"=?base64?x?=").decode() + "?="
    assert decoded(None) is None
    assert decoded("=?base64??=") == ""
    assert decoded("=?BASE64?eA==?=") == "=?BASE64?eA==?="


# The body that goes on.


@pytest.mark.parametrize(
    "body",
    [
        request("tools/call", name="x", arguments={"name": "y", "n": [1, {"a": "b"}]}, requestState="\u00ff"),
        request("tools/call", name="x").replace(b": ", b":").replace(b", ", b","),
        b' { "jsonrpc" : "2.0",\n "id":123456789012345678901234567890 , "method":"x","vendor":[1.50], "params" : '
        b'{"a":1e400,"_meta":{"io.modelcontextprotocol/protocolVersion" : "2026-07-28","v":"\\u0041"} } }',
    ],
)
def test_g2_a_body_goes_on_byte_for_byte(body: bytes) -> None:
    assert body_of(read(body), body) is body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{"_meta":{}}}',
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{}}}',
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"name":"a","n":1.50,"name":"b","_meta":{}}}',
            b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"name":"b","n":1.50,"_meta":{}}}',
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"a":1,"\\u0061":2}}}',
            b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"a":2}}}',
        ),
    ],
)
def test_e26_what_stands_there_twice_is_written_anew(body: bytes, expected: bytes) -> None:
    assert body_of(read(body), body) == expected


def test_e27_a_body_that_is_nested_too_deeply_is_no_message() -> None:
    deep = Envelope("request", {"params": Raw(b'{"a":' + b"[" * 12_000 + b"]" * 12_000 + b"}")}, id=b"1", method="x")
    with pytest.raises(ParseError):
        checked_headers(deep, lines("x"))
    with pytest.raises(ParseError):
        body_of(read(request()), b"[" * 12_000 + b"]" * 12_000)


# Statuses.


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((code, 400) for code in (-32700, -32600, -32602, -32020, -32021, -32022)),
        (-32601, 404),
        *((code, 200) for code in (-32603, -31001, -31003, -31004, 0, 1)),
    ],
)
def test_e20_the_status_is_part_of_the_contract(code: int, status: int) -> None:
    assert status_of(code) == status


def response(**members: Any) -> Envelope:
    return wire_format.parse(json.dumps({"jsonrpc": "2.0", "id": 1, **members}).encode(), limit=1_000_000)


def test_the_code_of_an_error() -> None:
    assert error_code(response(result={})) is None
    assert error_code(response(error={"code": -32601, "message": ""})) == -32601
    assert error_code(response(error={"code": 10**20, "message": ""})) == 0


# What a server speaks.


def test_the_probe_is_a_request_of_this_era() -> None:
    body, headers = probe()
    assert checked_headers(read(body), list(headers.items())) == headers
    assert read(body).method == "server/discover"


@pytest.mark.parametrize(
    ("members", "revisions"),
    [
        ({"result": {"supportedVersions": [MODERN]}}, REVISIONS),
        ({"result": {"supportedVersions": [MODERN, "2027-01-01", "2025-11-25"]}}, ("2025-11-25", MODERN)),
        ({"result": {"supportedVersions": ["2025-11-25"]}}, LEGACY),
        ({"result": {"supportedVersions": ["2027-01-01"]}}, LEGACY),
        ({"result": {"supportedVersions": MODERN}}, LEGACY),
        ({"result": {"supportedVersions": [1]}}, LEGACY),
        ({"result": {}}, LEGACY),
        ({"error": {"code": -32022, "message": "", "data": {"supported": [MODERN]}}}, REVISIONS),
        ({"error": {"code": -32022, "message": "", "data": {"supported": list(LEGACY)}}}, LEGACY),
        ({"error": {"code": -32022, "message": "", "data": [MODERN]}}, LEGACY),
        ({"error": {"code": -32022, "message": ""}}, LEGACY),
        ({"error": {"code": -32020, "message": ""}}, REVISIONS),
        ({"error": {"code": -32021, "message": ""}}, REVISIONS),
        ({"error": {"code": -32601, "message": "", "data": {"supported": [MODERN]}}}, LEGACY),
        ({"error": {"code": -32000, "message": ""}}, LEGACY),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_l29_a_response_tells_the_era(members: dict[str, Any], revisions: tuple[str, ...], status: int) -> None:
    assert revisions_of(status, response(**members)) == revisions
    assert is_spoken(revisions) == (MODERN in revisions)


@pytest.mark.parametrize("status", [200, 202, 400, 404, 405, 406, 415, 422])
def test_a_refusal_in_other_words_is_a_server_of_sessions(status: int) -> None:
    assert revisions_of(status, None) == LEGACY


@pytest.mark.parametrize("status", [302, 401, 403, 407, 408, 421, 425, 429, 500, 502, 503])
def test_a_failure_that_any_request_may_meet_is_no_verdict(status: int) -> None:
    assert revisions_of(status, None) is None


@pytest.mark.parametrize(
    ("status", "code", "is_doubtful"),
    [
        (400, -32602, False),
        (400, -32020, False),
        (400, -32021, False),
        (404, -32601, False),
        *((200, code, False) for code in (-32601, -32602, -32603, -31001, 5)),
        *((status, code, True) for code in (-32700, -32600, -32022) for status in (200, 400)),
        (400, -32000, True),
        (404, -32600, True),
        (400, -32601, True),
        (500, -32603, True),
    ],
)
def test_l29_which_errors_leave_open_what_the_server_speaks(status: int, code: int, is_doubtful: bool) -> None:
    assert modern.is_doubtful(status, code) == is_doubtful


@pytest.mark.parametrize(
    ("versions", "kept"),
    [
        ([MODERN], None),
        ([MODERN, "2025-11-25"], None),
        (["2027-01-01", MODERN, "x", "2025-11-25"], [MODERN, "2025-11-25"]),
        (["2027-01-01"], []),
        (MODERN, None),
        (None, None),
    ],
)
def test_l21_a_discovery_is_without_what_is_not_served(versions: object, kept: list[str] | None) -> None:
    came = response(result={"a": 1, "supportedVersions": versions, "b": 2})
    found = modern.offered(came, (*LEGACY, *REVISIONS))
    if kept is None:
        assert found is came
    else:
        expected = {"jsonrpc": "2.0", "id": 1, "result": {"a": 1, "supportedVersions": kept, "b": 2}}
        assert json.loads(found.encode()) == expected


def test_g10_a_list_of_revisions_is_bounded() -> None:
    """Each small text in it takes many times its bytes, and there are few revisions."""
    longest = ["2025-11-25"] * (modern.MAX_LIST_BYTES // 14) + [MODERN]
    assert revisions_of(200, response(result={"supportedVersions": longest[1:]})) == ("2025-11-25", MODERN)
    for versions in (longest, ["x"] * modern.MAX_LIST_BYTES):
        answer = response(result={"supportedVersions": versions})
        refused = response(error={"code": -32022, "message": "", "data": {"supported": versions}})
        with pytest.raises(ParseError, match="list"):
            revisions_of(200, answer)
        with pytest.raises(ParseError, match="list"):
            revisions_of(400, refused)
        with pytest.raises(ParseError, match="list"):
            modern.offered(answer, REVISIONS)


def test_an_error_is_no_discovery() -> None:
    refused = response(error={"code": -32022, "message": "", "data": {"supported": ["2027-01-01"]}})
    assert modern.offered(refused, REVISIONS) is refused


def test_the_revision_stands_in_one_place() -> None:
    assert modern.REVISIONS == (MODERN,)
    assert not set(modern.REVISIONS) & set(LEGACY)
