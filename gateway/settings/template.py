"""The file that `trunkline init` writes: every setting with its default, what it means, and room for servers."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

from ...mux.limits import EventLogLimits
from .definitions import ServerEventLog
from .reference import ANY_SERVER, Setting, Table, as_toml, every, tables

WIDTH: Final = 100
BARE: Final = re.compile("[A-Za-z0-9_-]+")
"""What TOML takes as a key without quotes."""

HEAD: Final = """\
Settings of trunkline. A line that begins with "#" and a key is a setting with its default: take the "#" away to \
change it. Each can also be given as TRUNKLINE_SECTION__KEY in the environment, such as TRUNKLINE_GATEWAY__PORT; that \
wins over this file.
"${NAME}" in a text is replaced by that variable of the environment, so that no secret has to stand here."""

EXAMPLES: Final[Mapping[str, str]] = {
    "auth.tokens": '[{ sha256 = "…", tenant = "acme", subject = "alice" }]',
    "servers.NAME.url": '"http://127.0.0.1:9000/mcp"',
    "servers.NAME.command": '["uvx", "mcp-server-git"]',
    "servers.NAME.env": '{ GITHUB_TOKEN = "${GITHUB_TOKEN}" }',
    "servers.NAME.headers": '{ Authorization = "Bearer ${FILES_TOKEN}" }',
    "servers.NAME.oauth": '{ issuer = "https://login.example/", client_id = "trunkline", client_secret = "${SECRET}" }',
}
"""What is shown of a setting beside its default, where that alone would tell nobody how to write one."""


def template(servers: Mapping[str, str]) -> str:
    """The text of a settings file in which these servers, by their URLs, are the only settings that are given."""
    lines = [*_comment(HEAD)]
    for table in tables():
        if table.section == ANY_SERVER:
            lines += _servers(table, servers)
        elif "." not in table.section:
            lines += ["", "", *_comment(table.meaning[:1].upper() + table.meaning[1:]), f"[{table.section}]"]
            for setting in table.settings:
                lines += _setting(setting)
    return "\n".join(lines) + "\n"


def _servers(table: Table, servers: Mapping[str, str]) -> Iterator[str]:
    yield from ("", "")
    yield from _comment("The MCP servers, each by its own name: NAME is served at /servers/NAME/mcp, /sse and /ws.")
    for name, url in servers.items():
        yield from (f"[servers.{name if BARE.fullmatch(name) else as_toml(name)}]", f"url = {as_toml(url)}", "")
    if not servers:
        yield from ("#[servers.files]", f"#url = {EXAMPLES['servers.NAME.url']}", "")
    yield from _comment("What a server may have; give either url or command. Its name stands for NAME.")
    yield "#[servers.NAME]"
    for setting in table.settings:
        if not setting.is_inherited:
            yield from _setting(setting)
    yield ""
    yield from _comment("Any key of [pooling] may stand there too, and counts for that server alone.")
    defaults = {setting.path: setting.default for setting in every()}
    log = EventLogLimits()
    defaults["pooling.event_log"] = as_toml({key: getattr(log, key) for key in ServerEventLog.__struct_fields__})
    for setting in table.settings:
        if setting.is_inherited:
            yield f"#{setting.key} = {defaults[f'pooling.{setting.key}']}"


def _setting(setting: Setting) -> Iterator[str]:
    yield ""
    yield from _comment(f"{setting.meaning} ({setting.kind})")
    parts = next((table.settings for table in tables() if table.section.rstrip("[]") == setting.path), ())
    for part in parts:
        yield from _comment(f"{part.key}: {part.meaning} ({part.kind})", indent="  ")
    example = EXAMPLES.get(setting.path)
    if example is not None and setting.default is not None:
        yield from _comment(f"For example: {setting.key} = {example}")
    yield f"#{setting.key} = {setting.default if setting.default is not None else example}"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for paragraph in text.splitlines():
        wrapped = textwrap.wrap(paragraph, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        yield from (f"# {indent if number else indent[2:]}{line}" for number, line in enumerate(wrapped))
