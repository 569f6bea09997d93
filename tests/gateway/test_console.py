"""What commands print, on a terminal and elsewhere."""

import io
import json
import time
from typing import Literal

import pytest
from rich.console import Console
from rich.text import Text
from trunkline.gateway import console as module
from trunkline.gateway.console import Meter, add_row, fitting, printable, show, table_for, write_json

PATIENCE = 30.0


def made(*, is_terminal: bool, width: int = 60) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    colours: Literal["standard", "auto"] = "standard" if is_terminal else "auto"
    return Console(file=written, force_terminal=is_terminal, width=width, color_system=colours), written


def test_a_table_has_lines_on_a_terminal_and_none_in_a_pipe() -> None:
    shown = {}
    for is_terminal in (True, False):
        console, written = made(is_terminal=is_terminal)
        table = table_for(console, "name", "what", caption="two rows")
        add_row(table, "a", Text("ok", "green"))
        add_row(table, "long", "x" * 100)
        show(console, table, "after")
        shown[is_terminal] = written.getvalue()
    assert "─" in shown[True]
    assert "\x1b[32mok" in shown[True]
    assert shown[False] == f"name  what\na     ok\nlong  {'x' * 100}\ntwo rows\nafter\n"


def test_a_terminal_without_room_is_shown_fewer_columns_and_whole_words() -> None:
    columns, rows = ("name", "what", "when"), [("a-name-to-copy", "some words", "2026-11-30")]
    for width, left_out in ((80, ""), (36, "no room for: when"), (20, "no room for: when, what"), (5, "what")):
        written = io.StringIO()
        console = Console(file=written, force_terminal=True, width=width, color_system=None)
        show(console, fitting(console, columns, rows, spare=("when", "who", "what"), caption="one row"))
        assert left_out in " ".join(written.getvalue().split())
        assert ("a-name-to-copy" in written.getvalue()) is (width > 5), "there is no more to leave out"
        assert ("2026-11-30" in written.getvalue()) is (width == 80)
    console, written = made(is_terminal=False, width=20)
    show(console, fitting(console, columns, rows, spare=("when", "what")))
    assert written.getvalue().splitlines()[1] == "a-name-to-copy  some words  2026-11-30"


def test_what_a_peer_says_neither_steers_nor_is_markup() -> None:
    console, written = made(is_terminal=False)
    table = table_for(console, "x")
    add_row(table, "\x1b[2J[red]\n")
    show(console, table)
    assert written.getvalue() == "x\n\ufffd[2J[red]\ufffd\n"
    assert printable("a\tb\n\x07ü", keep="\n\t") == "a\tb\n\ufffdü"


def test_json_is_the_same_wherever_it_goes() -> None:
    for is_terminal in (True, False):
        console, written = made(is_terminal=is_terminal)
        write_json({"a": ["ü", None]}, console)
        assert json.loads(written.getvalue()) == {"a": ["ü", None]}
        assert "\x1b" not in written.getvalue()


def test_a_meter_is_shown_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    console, written = made(is_terminal=True)
    with Meter("servers are asked", 3, console).running() as told:
        told.tell(1, 3, "half\x1b[2J")
        deadline = time.monotonic() + PATIENCE
        while "servers are asked" not in written.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "servers are asked" in written.getvalue()
    assert "half\ufffd[2J" in written.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_meter_is_not_shown_before_or_where_nobody_looks(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0 if is_terminal else 0.0)
    console, written = made(is_terminal=is_terminal)
    with Meter("x", None, console).running() as told:
        told.tell(1, None)
    assert "x" not in written.getvalue()
