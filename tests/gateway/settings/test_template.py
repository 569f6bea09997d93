"""The file that `trunkline init` writes: every setting is in it, and it changes none of them."""

import re
from pathlib import Path

import msgspec
import pytest
from trunkline.gateway.settings import Settings, load
from trunkline.gateway.settings.reference import every
from trunkline.gateway.settings.template import template


def read(folder: Path, text: str, **environ: str) -> Settings:
    path = folder / "trunkline.toml"
    path.write_text(text)
    return load(path, environ=environ)


def test_as_it_is_it_gives_nothing_but_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, template({})) == Settings()


def test_the_servers_that_it_was_asked_for_stand_in_it(tmp_path: Path) -> None:
    servers = {"files": "http://127.0.0.1:9000/mcp", "a.b": "stdio:uvx 'a \"b\"'"}
    settings = read(tmp_path, template(servers))
    assert {name: server.url for name, server in settings.servers.items()} == servers
    assert msgspec.structs.replace(settings, servers={}) == Settings()


def test_every_setting_is_in_it_and_so_is_its_meaning() -> None:
    text = template({})
    prose = " ".join(line.removeprefix("#").strip() for line in text.splitlines())
    for setting in every():
        assert re.search(rf"^#{setting.key} = |^# {setting.key}: |\b{setting.key} = ", text, re.MULTILINE), setting.path
        if not setting.is_inherited:
            assert setting.meaning in prose, setting.path


def test_with_every_mark_taken_away_it_still_says_the_defaults(tmp_path: Path) -> None:
    before, after = template({}).split("\n# The MCP servers")
    given = read(tmp_path, re.sub(r"(?m)^#(?=\w+ = )", "", before))
    assert given == Settings()
    servers = re.sub(r"(?m)^#(?=\w+ = )(?!url|command)", "", "# The MCP servers" + after)
    named = servers.replace("#[servers.NAME]", '[servers.NAME]\nurl = "https://files.example/mcp"')
    server = read(tmp_path, named, SECRET="s").servers["NAME"]
    assert server.oauth is not None
    plain = msgspec.structs.replace(server, oauth=None)
    pooling = Settings(servers={"NAME": plain}).pooling_for("NAME")
    assert pooling == Settings().pooling
    assert plain.eras == ("legacy", "modern")


@pytest.mark.parametrize("text", [template({}), template({"a": "http://h/"})])
def test_its_lines_are_short_enough_to_read(text: str) -> None:
    assert max(len(line) for line in text.splitlines() if not re.match(r"#\w+ = ", line)) <= 100
    head = text.partition("\n\n")[0].splitlines()
    assert all(len(line) > 80 or line.endswith(".") for line in head), "and no shorter than need be"
