"""The codec: ids byte for byte, unknown members kept, everything else refused with its reason."""

import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from trunkline.mux import envelope
from trunkline.mux.envelope import (
    Envelope,
    canonical,
    coerced_key,
    id_key,
    key_or_none,
    members_of,
    minted,
    parse,
    parse_batch,
)
from trunkline.mux.errors import (
    InvalidParams,
    InvalidRequest,
    Overloaded,
    ParseError,
    TrunklineError,
    UpstreamRefused,
)
from trunkline.mux.limits import MAX_BATCH

LIMIT = 1 << 20
IDS = ["1", '"1"', "0", "-1", "-0", str(2**60), "9" * 30, '"\\u0041"', '""', '"ü"']


def tracemalloc_peak(work: Callable[[], object]) -> int:
    """The most that this takes, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def message(**members: str) -> bytes:
    """A message whose members are given as raw JSON."""
    return ("{" + ",".join(f'"{name}":{text}' for name, text in {"jsonrpc": '"2.0"', **members}.items()) + "}").encode()


@pytest.mark.parametrize("spelled", IDS)
def test_e2_an_id_is_kept_byte_for_byte(spelled: str) -> None:
    parsed = parse(message(id=spelled, method='"m"'), limit=LIMIT)
    assert (parsed.kind, parsed.id, parsed.method) == ("request", spelled.encode(), "m")
    assert f'"id":{spelled}'.encode() in parsed.encode()


@pytest.mark.parametrize("spelled", ["null", "1.0", "1e3", "0.5", "true", "false", "{}", "[]"])
def test_e1_an_illegal_id_is_refused_and_not_taken_for_a_notification(spelled: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(message(id=spelled, method='"m"'), limit=LIMIT)
    assert refused.value.code == -32600


def test_e27_an_id_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="longer"):
        parse(message(id='"' + "x" * 1024 + '"', method='"m"'), limit=LIMIT)


def test_a_notification_has_no_id_member() -> None:
    parsed = parse(message(method='"notifications/x"'), limit=LIMIT)
    assert (parsed.kind, parsed.id) == ("notification", b"")


def test_e9_unknown_members_and_exact_numbers_are_kept() -> None:
    text = message(id="7", method='"m"', params='{"n":123456789012345678901234567890.000}', vendor='{"a":1e400}')
    assert parse(text, limit=LIMIT).encode() == text


def test_e7_exactly_one_of_result_and_error() -> None:
    for members in ({"result": "{}", "error": '{"code":1}'}, {}):
        with pytest.raises(InvalidRequest):
            parse(message(id="1", **members), limit=LIMIT)


@pytest.mark.parametrize("result", ["[]", '"x"', "1", "null"])
def test_e7_a_result_is_an_object(result: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(message(id="1", result=result), limit=LIMIT)


@pytest.mark.parametrize("error", ["[]", "{}", '{"code":"1"}', '{"code":1.5}', "null"])
def test_e7_an_error_has_an_integer_code(error: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(message(id="1", error=error), limit=LIMIT)


def test_e7_what_is_no_response_may_still_name_its_request() -> None:
    meant = (b'{"id":7,"result":1}', b' {"result":null,\n"id":7}', b'{"id":7,"error":{},"result":{}}')
    for text in (*meant, b'{"jsonrpc":"2.0","id":7}'):
        assert envelope.answered(text, limit=LIMIT) == b"7"
    none = (b"", b"{", b"[7]", b"7", b'{"id":7}', b'{"result":1}', b'{"id":7,"result":1,"method":1}')
    for text in (*none, b'{"id":7,"result":"\xff"}', b"[" * 20_000, b'{"id":7,"result":"%b"}' % (b"x" * LIMIT)):
        assert envelope.answered(text, limit=LIMIT) == b""


def test_e8_an_error_may_come_without_an_id() -> None:
    for members in ({}, {"id": "null"}):
        parsed = parse(message(error='{"code":-32700,"message":"x"}', **members), limit=LIMIT)
        assert (parsed.kind, parsed.id, parsed.is_error) == ("response", b"", True)
        assert b'"id":5' in parsed.with_id(b"5")
    assert parse(message(id="5", error='{"code":-1}'), limit=LIMIT).id == b"5"


@pytest.mark.parametrize("id", ["17", '"seventeen"'])
@pytest.mark.parametrize("size", [10, envelope.LARGE_BYTES - 8, envelope.LARGE_BYTES - 7, LIMIT - 200])
def test_g1_an_answer_goes_on_under_the_id_of_who_asked(size: int, id: str) -> None:
    result = '{"x":"%s"}' % ("x" * size)
    for order in (("id", "result"), ("result", "id")):
        members = {name: {"id": "5", "result": result}[name] for name in order}
        answer = parse(message(_more='{"result":0}', **members), limit=LIMIT).answer_to(id.encode())
        text = bytes(answer)
        assert len(answer) == len(text)
        kept = {name: bytes(raw).decode() for name, raw in parse(text, limit=LIMIT).members.items()}
        assert kept == {"jsonrpc": '"2.0"', "_more": '{"result":0}', "result": result, "id": id}


def test_a_large_result_is_not_copied() -> None:
    text = message(id="5", result='{"x":"%s"}' % ("x" * envelope.LARGE_BYTES))
    before = tracemalloc_peak(lambda: None)
    answer = parse(text, limit=LIMIT)
    assert tracemalloc_peak(lambda: answer.answer_to(b"6")) - before < envelope.LARGE_BYTES / 8


@pytest.mark.parametrize("params", ['"x"', "1", "true"])
def test_params_are_a_structure(params: str) -> None:
    with pytest.raises(InvalidRequest, match="params"):
        parse(message(id="1", method='"m"', params=params), limit=LIMIT)
    assert parse(message(id="1", method='"m"', params="null"), limit=LIMIT).params() is None


def test_a_result_needs_an_id() -> None:
    with pytest.raises(InvalidRequest, match="without an id"):
        parse(message(result="{}"), limit=LIMIT)
    assert parse(message(id="3", result="{}"), limit=LIMIT).id == b"3"


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"1",
        b'"x"',
        b"{}",
        b'{"jsonrpc":"1.0","id":1,"method":"m"}',
        b'{"jsonrpc":"2.0","id":1,"method":5}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","result":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","error":{"code":1}}',
    ],
)
def test_what_is_json_but_no_message_is_an_invalid_request(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(text, limit=LIMIT)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"a":1}x', b'{"a":NaN}', b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b"{\n"],
)
def test_e24_what_is_no_json_in_utf8_is_a_parse_error(text: bytes) -> None:
    with pytest.raises(ParseError) as refused:
        parse(text, limit=LIMIT)
    assert refused.value.code == -32700


@pytest.mark.parametrize("newline", ["", "\n"])
def test_e27_nesting_is_a_parse_error_and_no_crash(newline: str) -> None:
    deep = "[" * 100_000 + newline + "]" * 100_000
    for read in (parse, parse_batch):
        with pytest.raises(ParseError, match="deep"):
            read(message(method='"m"', params=deep) if read is parse else deep.encode(), limit=LIMIT)
    with pytest.raises(ParseError, match="deep"):
        members_of(Raw(b'{"a":' + deep.encode() + b"}"))


def test_e27_a_message_over_the_limit_is_refused() -> None:
    with pytest.raises(ParseError, match="larger"):
        parse(b" " * 11, limit=10)


def test_e25_line_breaks_between_tokens_are_taken_out() -> None:
    text = b'{\r\n "jsonrpc": "2.0",\n "id": 1,\r "method": "m", "params": {"n": 1.50}\n}\n'
    encoded = parse(text, limit=LIMIT).encode()
    assert encoded == b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"n":1.50}}'
    text = b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"n":\r1.50}}'
    assert parse(text, limit=LIMIT).encode() == encoded, "that one alone ends a line of a stream of events, too"


def test_e26_of_duplicate_keys_the_last_is_what_goes_on() -> None:
    parsed = parse(b'{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}', limit=LIMIT)
    assert parsed.method == "b"
    assert parsed.encode() == b'{"jsonrpc":"2.0","id":1,"method":"b"}'


def test_e11_a_batch_is_split_and_an_empty_one_refused() -> None:
    assert [m.id for m in parse_batch(b" [" + message(id="1", method='"m"') + b"]", limit=LIMIT)] == [b"1"]
    assert envelope.is_batch(b" \n[")
    assert not envelope.is_batch(b'{"a":[]}')
    for text in (b"[]", b"{}", b"[1]"):
        with pytest.raises(InvalidRequest):
            parse_batch(text, limit=LIMIT)
    with pytest.raises(ParseError):
        parse_batch(b"[", limit=LIMIT)


def test_g10_a_batch_is_bounded_in_number() -> None:
    """Each of its messages takes much longer than its bytes, and nobody else has a turn before the last."""
    one = message(method='"n"')
    assert len(parse_batch(b"[%b]" % b",".join([one] * MAX_BATCH), limit=LIMIT)) == MAX_BATCH
    for beyond in (b"[%b]" % b",".join([one] * (MAX_BATCH + 1)), b"[%b]" % b",".join([one] * 50_000)):
        with pytest.raises(InvalidRequest, match="at most"):
            parse_batch(beyond, limit=2 * LIMIT)


MANY = ",".join(f'"{n:06x}":1' for n in range(200_000))
"""Members of two MiB."""


def test_g10_members_are_bounded_in_number() -> None:
    """What is made of each takes much more than its bytes, in memory and in time."""
    for text in (
        message(id="1", method='"m"').replace(b"}", b",%b}" % MANY.encode()),
        message(id="1", error="{" + f'"code":1,{MANY}' + "}"),
    ):
        with pytest.raises(ParseError, match="too many members"):
            parse(text, limit=4 * LIMIT)


def test_what_is_large_within_is_no_matter_of_number() -> None:
    for members in (
        {"method": '"m"', "params": f'{{"arguments":{{{MANY}}},"_meta":{{}}}}'},
        {"result": f'{{"structuredContent":{{{MANY}}}}}'},
        {"error": f'{{"code":1,"data":{{{MANY}}}}}'},
        {"method": '"m"', "params": f"{{{MANY}}}"},
        {"method": '"m"', "x": '"' + "x" * (2 * LIMIT) + '"'},
    ):
        text = message(id="1", **members)
        parsed = parse(text, limit=4 * LIMIT)
        assert parsed.encode() == text
    params = Raw(b'{"arguments":{%b},"_meta":{"progressToken":7}}' % MANY.encode())
    assert envelope.swap_progress_token(params, b"1")[1] == b"7"
    with pytest.raises(ParseError, match="too many members"):
        envelope.swap_progress_token(Raw(b'{"_meta":{"progressToken":1},%b}' % MANY.encode()), b"1")


def test_e2_keys_tell_numbers_from_strings_and_know_all_spellings() -> None:
    assert id_key(b"5") == 5
    assert id_key(b'"5"') == "5"
    assert id_key(b"-0") == 0
    assert id_key(b'"\\u0041"') == id_key(b'"A"')
    assert coerced_key("17") == 17
    assert coerced_key("x") == "x"
    assert coerced_key("9" * 20) == "9" * 20
    assert coerced_key(4) == 4
    assert coerced_key("٣") == "٣"


@pytest.mark.parametrize(
    ("id", "number"), [(b"17", 17), (b'"17"', 17), (b'"\\u0031"', 1), (b"9999999999999999", 10**16 - 1)]
)
def test_e2_a_number_that_was_given_may_be_echoed_as_a_string(id: bytes, number: int) -> None:
    assert minted(id) == number


@pytest.mark.parametrize("id", [b"", b'""', b"-1", b'"x"', b"1.0", b"10000000000000000", '"٣"'.encode(), b"{}"])
def test_e2_what_nobody_gave_is_no_number(id: bytes) -> None:
    assert minted(id) == 0


def test_a_value_that_is_no_legal_id_has_no_key() -> None:
    assert key_or_none(Raw(b"7")) == id_key(b"7")
    assert [key_or_none(raw) for raw in (None, Raw(b"null"), Raw(b"1.5"), Raw(b"{}"))] == [None] * 4


def swapped(params: str) -> tuple[str, str]:
    raw, token = envelope.swap_progress_token(Raw(params.encode()), b"42")
    return bytes(raw).decode(), token.decode()


@pytest.mark.parametrize("text", ["x", "x" * 9_999, "x" * LIMIT])
@pytest.mark.parametrize("token", ["0", '""', '"0"', "7", "1.5", str(2**70)])
def test_a_progress_token_is_swapped_whatever_its_spelling(token: str, text: str) -> None:
    assert swapped(f'{{"_meta":{{"progressToken":{token},"v":1}},"n":"{text}"}}') == (
        f'{{"_meta":{{"progressToken":42,"v":1}},"n":"{text}"}}',
        token,
    )


@pytest.mark.parametrize("text", ["", "x" * 9_999, "x" * LIMIT])
def test_an_escaped_key_hides_no_progress_token(text: str) -> None:
    params, token = swapped(f'{{"n":"{text}","\\u005fmeta":{{"progress\\u0054oken":7}}}}')
    assert (json.loads(params), token) == ({"n": text, "_meta": {"progressToken": 42}}, "7")


@pytest.mark.parametrize("token", ["7", "-1.50", '""', '"\\u0061\\"\\\\:é"', f'"{"x" * 1022}"'])
def test_e18_a_lasting_token_brings_the_callers_own_along(token: str) -> None:
    lasting = envelope.lasting_token(42, token.encode())
    assert isinstance(json.loads(lasting), str)
    assert envelope.read_lasting_token(Raw(lasting)) == (42, token.encode())


@pytest.mark.parametrize(
    "text",
    ["x", "", ":", "42", "42:", ":7", "42:x", "42: 7", "42:7 ", '42:"\n"', "42:{}", "42:null", "-1:7", "9" * 17 + ":7"],
)
def test_what_no_lasting_token_is_brings_nothing(text: str) -> None:
    assert envelope.read_lasting_token(Raw(json.dumps(text).encode())) == (0, b"")
    assert envelope.read_lasting_token(Raw(b"42")) == (0, b"")


def test_a_call_that_begins_a_task_is_told_from_others() -> None:
    for space in (b"", b" " * 9_999):
        for params in (b'{%b"task":{}}', b'{%b"a":1,"\\u0074ask":null}'):
            assert envelope.begins_task(Raw(params % space))
        for params in (b"{%b}", b'{%b"a":"task"}', b'["task"%b]', b'{%b"a":{"task":1}}', b'{%b"a":"\\u0074ask"}'):
            assert not envelope.begins_task(Raw(params % space))


@pytest.mark.parametrize("params", ["[1]", "{}", '{"_meta":1}', '{"_meta":{}}', '{"a":"_meta"}', '["\\u0041"]', "null"])
def test_params_without_a_progress_token_are_not_touched(params: str) -> None:
    assert swapped(params) == (params, "")


def test_e26_a_token_that_only_another_parser_would_see_does_not_pass() -> None:
    params, token = swapped('{"_meta":{"progressToken":9},"_meta":{}}')
    assert (params, token) == ('{"_meta":{}}', "")


@pytest.mark.parametrize("token", ["null", "true", "{}", '"' + "x" * 1024 + '"'])
def test_an_illegal_progress_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidParams):
        swapped(f'{{"_meta":{{"progressToken":{token}}}}}')


def test_canonical_json_is_equal_for_equal_objects() -> None:
    assert canonical(Raw(b'{"b": 1, "a": {"d":2,"c":3}}')) == canonical(Raw(b'{"a":{"c":3,"d":2},"b":1}'))
    assert canonical(None) == b"{}"


def test_a_failure_names_code_message_and_data() -> None:
    assert json.loads(envelope.failure(b'"x"', Overloaded("full", limit="l"))) == {
        "jsonrpc": "2.0",
        "id": "x",
        "error": {"code": -31003, "message": "full", "data": {"limit": "l"}},
    }
    assert json.loads(envelope.failure(b"", TrunklineError("no")))["id"] is None
    assert b'"error":{"code":5,"extra":1.0}' in envelope.failure(b"1", UpstreamRefused(b'{"code":5,"extra":1.0}'))


def test_messages_of_the_gateways_own() -> None:
    assert parse(envelope.request("m", {}, b"1"), limit=LIMIT).kind == "request"
    assert b"params" not in envelope.notification("n")
    assert b'"params":{}' in envelope.notification("n", {})
    assert envelope.result(b"1", Raw(b"{}")) == b'{"jsonrpc":"2.0","id":1,"result":{}}'


def test_params_are_read_one_level_deep_and_written_back() -> None:
    parsed = parse(message(id="1", method='"m"', params='{"a":[1],"b":2}'), limit=LIMIT)
    params = parsed.params()
    assert params is not None
    assert bytes(params["a"]) == b"[1]"
    assert parsed.with_params({"c": Raw(b"3")}) == b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"c":3}}'
    assert parsed.with_params({}) == b'{"jsonrpc":"2.0","id":1,"method":"m","params":{}}'
    assert Envelope("notification", {"params": Raw(b"[1]")}).params() is None
    assert Envelope("notification", {}).params() is None
    assert "id=b'1'" in repr(parsed)


def test_strings_and_only_strings_have_a_text() -> None:
    assert envelope.string_of(Raw(b'"x"')) == "x"
    assert envelope.string_of(Raw(b"1")) is None
    assert envelope.string_of(None) is None


def test_a_value_of_our_own_keeps_raw_values_in_it() -> None:
    assert bytes(envelope.encoded({"a": Raw(b"1e400"), "b": "x"})) == b'{"a":1e400,"b":"x"}'


@pytest.mark.parametrize("second", ["null", "7", '"x"'])
def test_e26_a_token_in_a_member_given_twice_is_seen_by_no_server(second: str) -> None:
    text = f'{{"_meta":{{"progressToken":7}},"name":"x","_meta":{second}}}'
    params, token = envelope.swap_progress_token(Raw(text.encode()), b"5")
    assert token == b""
    assert b"progressToken" not in bytes(params)
    assert json.loads(bytes(params)) == json.loads(text)


@pytest.mark.parametrize("value", ["1e400", "9" * 5000, "[" * 20_000 + "]" * 20_000])
def test_values_that_cannot_be_compared_are_refused(value: str) -> None:
    with pytest.raises(InvalidParams):
        envelope.canonical(Raw(b'{"a":%s}' % value.encode()))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.integers() | st.text(max_size=50), st.dictionaries(st.text(), json_values, max_size=4), st.booleans())
def test_what_parses_is_written_back_equal(id: int | str, extra: dict[str, object], pretty: bool) -> None:
    body = {**extra, "jsonrpc": "2.0", "id": id, "method": "m"}
    body.pop("result", None), body.pop("error", None)
    text = json.dumps(body, indent=2 if pretty else None, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        parsed = parse(text, limit=LIMIT)
    except ParseError:
        with pytest.raises(UnicodeDecodeError):  # only lone surrogates are refused
            text.decode()
        return
    encoded = parsed.encode()
    assert json.loads(encoded) == body
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    assert json.loads(parsed.id) == id


def test_a_message_is_written_once() -> None:
    parsed = parse(b'{"jsonrpc":"2.0", "method":"m", "n":1.0}', limit=LIMIT)
    text = parsed.encode()
    assert text == b'{"jsonrpc":"2.0","method":"m","n":1.0}'
    assert parsed.encode() is text
