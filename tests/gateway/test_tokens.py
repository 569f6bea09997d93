"""`trunkline token`: what is printed once, and what the settings keep."""

import hashlib
import io
import json
import tomllib

import msgspec
import pytest
from rich.console import Console
from trunkline.gateway.exits import WrongArgument
from trunkline.gateway.settings import TokenEntry
from trunkline.gateway.tokens import Made, make, show


def shown(made: Made, *, as_json: bool = False, is_terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=20, force_terminal=is_terminal, no_color=True)
    show(made, as_json=as_json, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_is_another_and_its_entry_accepts_it_alone() -> None:
    made, other = make("alice", "acme", admin=True), make("alice", "acme", admin=True)
    assert made.token != other.token
    digest = hashlib.sha256(made.token.encode()).hexdigest()
    assert made.entry == TokenEntry(sha256=digest, tenant="acme", subject="alice", admin=True)


@pytest.mark.parametrize("admin", [True, False])
def test_the_entry_can_be_copied_into_the_settings(admin: bool) -> None:
    made = make('al"ice', 'a"c', admin=admin)
    token, _, entry = shown(made).partition("\n\n")
    assert token == made.token
    [read] = tomllib.loads(f"tokens = [{entry.splitlines()[1]}]")["tokens"]
    assert msgspec.convert(read, TokenEntry) == made.entry


@pytest.mark.parametrize(
    ("subject", "tenant", "argument"), [("\udcff", "", "SUBJECT"), ("", "", "SUBJECT"), ("a", "b\nc", "--tenant")]
)
def test_a_name_that_the_settings_could_not_hold_is_refused(subject: str, tenant: str, argument: str) -> None:
    with pytest.raises(WrongArgument, match=argument):
        make(subject, tenant, admin=False)


def test_no_line_is_broken_on_a_narrow_terminal() -> None:
    made = make("alice", "", admin=False)
    lines = shown(made, is_terminal=True).splitlines()
    assert made.token in lines[0]
    assert made.entry.sha256 in lines[-1]


def test_programs_get_json() -> None:
    made = make("alice", "acme", admin=False)
    entry = {"sha256": made.entry.sha256, "tenant": "acme", "subject": "alice", "admin": False}
    assert json.loads(shown(made, as_json=True)) == {"token": made.token, "entry": entry}
