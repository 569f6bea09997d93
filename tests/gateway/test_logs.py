"""Log lines: one a record, for people or for machines, and no secret in either."""

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire
from trunkline.gateway.logs import (
    LINES_PER_SECOND,
    BoundedHandler,
    JSONFormatter,
    TextFormatter,
    configure,
    redacted,
)

SECRET = "s3cret-of-alice"


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    logger = logging.getLogger("trunkline.test")
    return logger.makeRecord(logger.name, logging.WARNING, __file__, 1, message, arguments, None, extra=extra)


def failed(message: str) -> logging.LogRecord:
    made = record("it failed")
    try:
        raise ValueError(message)
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: bearer   {SECRET} and more",
        f"authorization: bearer\t{SECRET}",
        f"authorization: bearer\r\n {SECRET}",
        f"/servers/up/sse?session_id={SECRET}",
        f"GET /servers/up/ws?a=1&workflow={SECRET} HTTP/1.1",
        f"/x?last_event_id={SECRET}&session_id={SECRET}",
        f"/x?t%6Fken={SECRET}",
        f"/x?a[b]={SECRET}",
        f"cannot connect to https://user:{SECRET}@host/mcp",
        f"cannot connect to https://{SECRET}@host/mcp",
        f"cannot connect to https://user:with@{SECRET}@host/mcp",
        f"http://proxy/https://user:{SECRET}@host/mcp?x=y",
        f"https://host/mcp?{SECRET}",
        f"https://proxy/https://host/mcp?{SECRET}",
        f"'https://host/mcp?key={SECRET}&x=y'",
    ],
)
def test_g12_a_secret_is_left_out_wherever_it_stands(text: str) -> None:
    assert SECRET not in redacted(text)
    for formatter in (JSONFormatter(), TextFormatter()):
        for made in (record(text), record("%s", text), record("x", url=text), record("x", some=[text]), failed(text)):
            assert SECRET not in formatter.format(made)


@pytest.mark.parametrize("space", ["\t", "\r\n ", "\u2028"])
def test_g12_a_secret_is_left_out_before_what_stands_before_it_is_escaped(space: str) -> None:
    for formatter in (JSONFormatter(), TextFormatter()):
        assert SECRET not in formatter.format(record(f"authorization: bearer{space}{SECRET}"))


@pytest.mark.parametrize("part", ["://", "://a@", "?a", "&", "bearer\t", "bearer\\x41", "://a?b=c "])
def test_g9_what_a_server_repeats_costs_no_more_than_its_length(part: str) -> None:
    assert len(redacted(part * 300_000)) <= len(part) * 300_001


@pytest.mark.parametrize("text", ["what is it? a = b", "a & b", "https://host:1/mcp", "me@host", "x=1 y=2", "50 % ?"])
def test_what_is_no_secret_is_left_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_json_is_one_object_a_line_with_the_extra_fields() -> None:
    made = record("a %s\nof two lines", "message", server="up", n=1, none=None, yes=True, odd=object)
    text = JSONFormatter().format(made)
    assert "\n" not in text
    entry: dict[str, Any] = json.loads(text)
    assert {name: entry[name] for name in ("level", "logger", "message", "server", "n", "none", "yes")} == {
        "level": "warning",
        "logger": "trunkline.test",
        "message": "a message\nof two lines",
        "server": "up",
        "n": 1,
        "none": None,
        "yes": True,
    }
    assert entry["time"].endswith("Z")
    assert len(entry["time"]) == len("2026-01-01T00:00:00.000Z")


def test_a_field_never_takes_the_place_of_what_every_line_has() -> None:
    entry = json.loads(JSONFormatter().format(record("said", level="x", logger="x", time="x")))
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "trunkline.test", "said")
    assert entry["time"] != "x"


def test_a_failure_is_a_field_in_json_and_lines_below_in_text() -> None:
    assert "ValueError: no good" in json.loads(JSONFormatter().format(failed("no good")))["error"]
    first, *below = TextFormatter().format(failed("no good")).splitlines()
    assert first.endswith("trunkline.test: it failed")
    assert below[-1] == "ValueError: no good"


def test_a_message_cannot_pass_for_a_line_of_its_own() -> None:
    line = TextFormatter().format(record("up\r\n2026-01-01 info trunkline: all is well", server="a\nb"))
    assert len(line.splitlines()) == 1
    assert line.endswith("all is well server=a\\nb")


STEERING = "\x1b[2J\x1b]0;x\x07\x9b2J\x7f\x00\x85\u2028\u2029\u202e\ud800"
"""What steers a terminal, ends a line for some, or cannot be encoded."""


def test_nothing_that_a_peer_says_steers_a_terminal() -> None:
    for formatter in (JSONFormatter(), TextFormatter()):
        for made in (record(STEERING), record("x", said=STEERING)):
            assert formatter.format(made).isprintable()
        assert "".join(formatter.format(failed(STEERING)).split("\n")).isprintable()
    assert json.loads(JSONFormatter().format(record(STEERING, said=STEERING)))["said"] == STEERING
    assert "caf\xe9 \u5317" in TextFormatter().format(record("caf\xe9 \u5317"))


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was, and the level of our own."""
    logger, own = logging.getLogger(), logging.getLogger("trunkline")
    handlers, level, own_level = logger.handlers[:], logger.level, own.level
    yield logger
    own.setLevel(own_level)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(("format", "level"), [("json", "debug"), ("text", "warning"), ("json", "error")])
def test_logs_go_to_stderr_from_their_level_on(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], format: Any, level: str
) -> None:
    configure(format, level)
    names = ["debug", "info", "warning", "error"]
    for name in names:
        logging.getLogger("trunkline.x").log(getattr(logging, name.upper()), "said")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == len(names) - names.index(level)
    if format == "json":
        assert [json.loads(line)["level"] for line in lines] == names[names.index(level) :]


class Lines(io.StringIO):
    """A stream that tells when so many lines have come."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            self._changed.notify_all()
            return super().write(text)

    def first(self, count: int) -> list[dict[str, Any]]:
        """So many lines, once they are there."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.getvalue().count("\n") >= count, 10)
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def lines(root: logging.Logger) -> Iterator[Lines]:
    """What is written of two lines of a kind in a second, by a clock that stands still in it."""
    stream = Lines()
    handler = BoundedHandler(stream, most=2, clock=lambda: 0.0)
    handler.setFormatter(JSONFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    handler.close()


def fail(number: int, server: str = "up") -> None:
    logging.getLogger("trunkline.x").warning("call %d ended", number, extra={"server": server})


def test_g10_of_a_flood_so_many_lines_are_written_and_the_last_one_with_how_many_were_not(lines: Lines) -> None:
    for number in range(1000):
        fail(number)
    fail(0, "another")  # is another kind, though it comes from the same place
    told = lines.first(4)
    assert [(line["server"], line["message"]) for line in told] == [
        ("up", "call 0 ended"),
        ("up", "call 1 ended"),
        ("another", "call 0 ended"),
        ("up", "call 999 ended"),
    ]
    assert [line.get("left_out") for line in told] == [None, None, None, 997]


def test_what_a_flood_has_left_to_say_is_said_when_the_program_ends() -> None:
    stream = io.StringIO()
    handler = BoundedHandler(stream, most=0)
    for number in range(3):
        handler.handle(record("%d", number))
    assert stream.getvalue() == ""
    handler.close()
    assert stream.getvalue() == "2\n"


def test_in_the_next_second_lines_are_written_again() -> None:
    seconds, stream = 0.0, io.StringIO()
    handler = BoundedHandler(stream, most=2, clock=lambda: seconds)
    for second in range(3):
        seconds = 10.0 * second
        for number in range(4):
            handler.handle(record("%d", number))
    handler.close()
    assert stream.getvalue().split() == 3 * ["0", "1", "3"]


def test_a_line_is_no_failure_of_who_says_it_where_no_thread_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    seconds, stream = 0.0, Lines()
    handler = BoundedHandler(stream, most=1, clock=lambda: seconds)
    handler.setFormatter(JSONFormatter())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Timer, "start", fail)
        for number in range(4):
            handler.handle(record("%d", number))
    seconds = 0.9
    handler.handle(record("4"))
    assert [line["message"] for line in stream.first(2)] == ["0", "4"]
    handler.close()


def test_who_debugs_gets_every_line(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "debug")
    for number in range(LINES_PER_SECOND + 10):
        fail(number)
    assert len(capsys.readouterr().err.splitlines()) == LINES_PER_SECOND + 10


def lines_of(gateway: Gateway) -> list[dict[str, Any]]:
    """What a gateway has logged, below its welcome."""
    return [json.loads(line) for line in gateway.process.log().splitlines() if line.startswith("{")]


@pytest.mark.anyio
async def test_g12_a_gateway_that_says_all_it_can_says_no_secret() -> None:
    with running_gateway("--demo", "--log-format", "json", "--log-level", "debug") as gateway:
        async with Wire(gateway.url("demo"), {"Authorization": f"Bearer {SECRET}"}) as wire:
            await wire.open(name=SECRET)
            await wire.call("echo", {"text": SECRET})
            for path in (f"?session_id={SECRET}", f"?{SECRET}", f"/{SECRET}?workflow={SECRET}"):
                await (await wire.request("GET", path=path, headers={"Mcp-Session-Id": SECRET})).body()
            await (await wire.post(b'{"x":"%s"' % SECRET.encode())).body()
            keyed = await wire.post(
                b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}',
                {"Trunkline-Workflow": SECRET, "Mcp-Session-Id": None},
            )
            assert keyed.status == 200
            session_id = str(wire.session_id)
            await wire.delete()
            log = gateway.process.log()
            assert SECRET not in log
            assert session_id not in log
            messages = [line["message"] for line in lines_of(gateway)]
            assert messages.count("workflow opened") == 2
            assert messages.count("workflow ended: deleted") == 1


@pytest.mark.anyio
async def test_g12_nor_does_a_library_say_one_that_would_tell_what_is_stored(tmp_path: Path) -> None:
    settings = tmp_path / "trunkline.toml"
    directory = f'[directory]\nbackend = "database"\nurl = "sqlite+aiosqlite:///{tmp_path}/directory.db"\n'
    with running_upstream() as upstream:
        server = f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\nsession_headers = ["X-Of-Alice"]\n'
        settings.write_text(directory + server)
        with running_gateway("--log-level", "debug", toml=settings) as gateway:
            async with Wire(gateway.url(), {"Trunkline-Workflow": SECRET, "X-Of-Alice": f"header-{SECRET}"}) as wire:
                await wire.open(name=f"name-{SECRET}")
                await (await wire.call("echo", {"text": f"text-{SECRET}"})).response()
                held = await wire.call("hold", {"gate": SECRET}, id=b'"held"')
                primed = await held.next_event()
                held.cut()
                upstream.open(SECRET)
                await (await wire.get(primed.id if primed is not None else "")).response()
                session_id = str(wire.session_id)
                await wire.delete({"Trunkline-End": "workflow"})
            [upstream_session] = upstream.report()["sessions"]
            log = gateway.process.output()
    assert "workflow ended: deleted" in log
    assert [text for text in (SECRET, session_id, upstream_session) if text in log] == []


@pytest.mark.anyio
@pytest.mark.parametrize("format", ["json", "text"])
async def test_lines_about_a_call_name_its_server_workflow_principal_and_ids(tmp_path: Path, format: str) -> None:
    settings, long_id = tmp_path / "trunkline.toml", '"' + "x" * 100 + '"'
    with running_upstream() as upstream:
        settings.write_text(f'[pooling]\nrequest_timeout = 2\n[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]')
        with running_gateway("--log-format", format, "--log-level", "debug", toml=settings) as gateway:
            async with Wire(gateway.url()) as wire:
                await wire.open()
                [session] = gateway.fetch_json("/api/sessions")
                await (await wire.call("counter", id=long_id.encode())).response()
                timed_out = await (await wire.call("hold", {"gate": "never"}, id=b"7")).response()
                assert timed_out["error"]["code"] == -31004
            lines = [line for line in gateway.process.log().splitlines() if "call ended" in line]
        sent = [int(request["id"]) for request in upstream.report()["requests"] if "tool" in request]
    ended, warned = lines
    shared = {"server": "up", "handle": session["workflow"], "principal": session["principal"], "method": "tools/call"}
    due = [
        (ended, "debug", "call ended: ok", {**shared, "id": long_id[:63] + "…", "upstream_id": sent[0]}),
        (warned, "warning", "call ended: timed_out", {**shared, "id": "7", "upstream_id": sent[1]}),
    ]
    for line, level, said, fields in due:
        if format == "json":
            entry = json.loads(line)
            assert entry["message"].startswith(said)
            assert entry["level"] == level
            assert entry["seconds"] > 0
            assert {name: entry[name] for name in fields} == fields
        else:
            assert f" {level}" in line
            assert said in line
            for name, value in fields.items():
                assert f" {name}={value}" in line


@pytest.mark.anyio
async def test_a_gateway_that_does_not_debug_says_nothing_of_calls_that_go_well() -> None:
    with running_gateway("--demo", "--log-format", "json") as gateway:
        async with Wire(gateway.url("demo")) as wire:
            await wire.open()
            await (await wire.call("echo", {"text": "x"})).response()
        assert "workflow opened" in gateway.process.log()
        assert "call ended" not in gateway.process.log()
