"""`trunkline init`: the file it writes, and the file it leaves alone."""

import shlex
from pathlib import Path

import pytest
from trunkline.gateway.beginning import begin
from trunkline.gateway.exits import WrongArgument
from trunkline.gateway.settings import Settings, SettingsError, load


def test_it_says_what_to_run_next_and_with_which_file(tmp_path: Path) -> None:
    file = tmp_path / "a b.toml"
    told = begin(file, [], is_forced=False)
    assert load(file, environ={}) == Settings()
    commands = [shlex.split(line, comments=True) for line in told.splitlines() if line.startswith("  ")]
    assert [(words[-2], Path(words[-1])) for words in commands] == [("serve", file), ("check", file)]


def test_the_servers_that_are_given_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    told = begin(file, ["files=http://127.0.0.1:9000/mcp", "git=stdio:uvx git"], is_forced=False)
    assert list(load(file, environ={}).servers) == ["files", "git"]
    assert told.index(" check ") < told.index(" serve ")


def test_a_file_that_is_there_is_left_alone_unless_that_is_forced(tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text("mine")
    with pytest.raises(WrongArgument, match="--force"):
        begin(file, [], is_forced=False)
    assert file.read_text() == "mine"
    begin(file, [], is_forced=True)
    assert load(file, environ={}) == Settings()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match=r"cannot write .*: No such file or directory"):
        begin(tmp_path / "none" / "x.toml", [], is_forced=False)


def test_a_server_that_is_none_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    with pytest.raises(SettingsError, match=r"servers\.up\.url"):
        begin(file, ["up=ftp://h"], is_forced=False)
    assert not file.exists()
