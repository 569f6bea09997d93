"""How settings are read: a TOML file, the environment and the command line become one value, or an error with a path.

A key in the environment is `TRUNKLINE_SECTION__KEY` (`TRUNKLINE_GATEWAY__PORT`, `TRUNKLINE_SERVERS__FILES__URL`); a
server of the file, or a header of one, is named there with `_` for `-` and `.`. It wins over the file, and the command
line wins over both. `${NAME}` in a string is replaced from the environment.
"""

import difflib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from .consistency import check
from .definitions import Server, ServerEventLog, Settings, SettingsError

PREFIX: Final = "TRUNKLINE_"
ELSEWHERE: Final[Mapping[tuple[type[msgspec.Struct], str], str]] = {
    (Server, "args"): 'they belong to command, behind the program: command = ["uvx", "mcp-server-git"]',
    (Server, "type"): "url says it by its beginning, and command by being there",
    (Server, "transport"): "url says it by its beginning, and command by being there",
    (ServerEventLog, "total_bytes"): "it bounds the process: pooling.event_log has it",
}
"""What settings of clients call what a server has here by another name, and what is said at another place."""

MISSING: Final = re.compile("Object missing required field `(.+)`")
GOT: Final = re.compile("got `(.+)`")
LONGER: Final = re.compile("Expected `float` <= (.+)")
"""A time that is too long: how long it may be stands in no kind of the reference."""

KINDS: Final[Mapping[str, str]] = {
    "array": "list",
    "bool": "true or false",
    "float": "number",
    "int": "whole number",
    "object": "table",
    "str": "text",
}
"""What msgspec calls by another name than the reference."""

URL: Final = re.compile("[a-z+]{2,}:")
NO_FILE: Final = "a URL is no file of settings: it goes into one, or behind --upstream NAME=URL of `trunkline serve`"

VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    insecure: bool = False,
) -> Settings:
    """Read the settings; `overrides` are values by dotted path, `upstreams` are `NAME=URL`.

    Raises:
        SettingsError: a file that cannot be read, a wrong key or value, or settings that contradict each other.
    """
    try:
        tree = _merged(path, environ, upstreams, overrides or {})
        settings = _convert(_expanded(tree, "", environ))
        check(settings, insecure=insecure)
    except SettingsError as error:
        path_of_key = error.path.partition("[")[0]
        name = PREFIX + path_of_key.upper().replace("-", "_").replace(".", "__")
        typed = {*(overrides or {}), *(f"servers.{upstream.partition('=')[0]}.url" for upstream in upstreams)}
        if name not in environ or path_of_key in typed:
            raise
        raise SettingsError(error.path, f"{error.message} (it comes from {name})") from None
    except RecursionError:
        raise SettingsError("", "the settings are nested too deeply") from None
    return settings


def unread(environ: Mapping[str, str]) -> dict[str, str]:
    """Names in the environment that are a setting's but for its two underscores, and what that is called.

    A port that is a URL is none: Kubernetes sets it so, for a service of that name.
    """
    if not any(name.startswith(PREFIX) and "__" not in name for name in environ):
        return {}
    from .reference import ANY_SERVER, every

    names = [PREFIX + setting.path.upper().replace(".", "__") for setting in every()]
    keys = [setting.key.upper() for setting in every() if setting.section == ANY_SERVER]
    of_a_server = re.compile(f"({PREFIX}SERVERS)_(.+?)_({'|'.join(keys)})")
    servers = [match for name in environ if "__" not in name and (match := of_a_server.fullmatch(name))]
    meant = {found: name for name in names if (found := name.replace("__", "_")) in environ}
    return {
        **{name: setting for name, setting in meant.items() if not (name.endswith("_PORT") and "://" in environ[name])},
        **{match[0]: "__".join(match.groups()) for match in servers},
    }


def _merged(
    path: Path | None, environ: Mapping[str, str], upstreams: Sequence[str], overrides: Mapping[str, object]
) -> dict[str, Any]:
    """What file, environment and command line say, the later over the earlier."""
    tree = _read(path) if path is not None else {}
    for name, text in environ.items():
        if name.startswith(PREFIX) and "__" in name:
            parts = name.removeprefix(PREFIX).split("__")
            keys = [part.lower() for part in parts]
            if keys[0] == "servers":
                keys[1] = _as_in_the_file(keys[1], tree.get("servers"))
                if keys[2:3] == ["headers"] and len(keys) > 3:
                    keys[3] = _as_in_the_file(keys[3], _at(tree, keys[:3]))
                elif keys[2:3] == ["env"] and len(keys) > 3:
                    keys[3:] = ["__".join(parts[3:])]  # a variable's name, as it is
            _put(tree, keys, _value(text, is_text=_kind_at(keys) is str))
    named = set[str]()
    for upstream in upstreams:
        name, found, url = upstream.partition("=")
        if not found or not url:
            raise SettingsError("--upstream", "expected NAME=URL, such as files=http://127.0.0.1:9000/mcp")
        if name in named:
            raise SettingsError("--upstream", f"{name} is named twice; give each server a name of its own")
        named.add(name)
        _put(tree, ["servers", name, "url"], url)
    for dotted, value in overrides.items():
        _put(tree, dotted.split("."), value)
    return tree


def _as_in_the_file(name: str, table: object) -> str:
    """The key of a table that a name in the environment means, where capitals, `-` and `.` cannot be written."""
    names = list(table) if isinstance(table, dict) and name not in table else []
    return next((one for one in names if re.sub("[-.]", "_", one).lower() == name), name)


def _at(tree: object, keys: Sequence[str]) -> object:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():  # whoever writes it has emptied it first
            raise SettingsError("", f"{path} is empty: it is being written, or holds no settings yet")
        return tomllib.loads(text)
    except FileNotFoundError:
        if URL.match(str(path)):
            raise SettingsError("", NO_FILE) from None
        raise SettingsError("", f"there is no file {path}; `trunkline init {path}` writes one") from None
    except OSError as error:
        raise SettingsError("", f"cannot read {path}: {error.strerror}; give a file that this user may read") from None
    except UnicodeDecodeError:
        raise SettingsError("", f"cannot read {path}: it is not UTF-8; save it as UTF-8") from None
    except ValueError as error:  # Python reads no number of thousands of digits, and says so in another way
        raise SettingsError("", f"{path} is not TOML: {error}") from None


def _value(text: str, *, is_text: bool) -> object:
    """A value of the environment: TOML where it is one, else the text itself. A token of digits stays text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return text if is_text and not isinstance(value, str) else value


def _kind_at(keys: Sequence[str]) -> Any:
    """The type of the value to which these keys lead; None where they lead to none."""
    kind: Any = Settings
    for key in keys:
        if kind == dict[str, Server]:
            kind = Server
        elif kind == dict[str, str]:
            kind = str
        elif (section := _section(kind)) is not None:
            kind = next((field.type for field in msgspec.structs.fields(section) if field.name == key), None)
        else:
            return None
    return kind


def _choices(path: str) -> list[str]:
    """The texts that a value at this path may be."""
    kinds, found = [_kind_at(re.sub(r"\[\d+\]", "", path).split("."))], list[str]()
    while kinds:
        kind = kinds.pop(0)
        if get_origin(kind) is Literal:
            found += [str(one) for one in get_args(kind)]
        else:
            kinds += [one for one in get_args(kind) if get_origin(one) or get_args(one)]
    return found


def _section(kind: Any) -> type[msgspec.Struct] | None:
    """The table that a field of this type holds, where it may be left out as well; None where it holds none."""
    kinds = [one for one in get_args(kind) if one is not NoneType] if isinstance(kind, UnionType) else [kind]
    is_table = len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], msgspec.Struct)
    return kinds[0] if is_table else None


def _put(tree: dict[str, Any], keys: Sequence[str], value: object) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise SettingsError(".".join(keys), f"{key} is not a table")
        tree = below
    tree[keys[-1]] = value


def _expanded(value: Any, path: str, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _expanded(v, f"{path}.{k}" if path else k, environ) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, f"{path}[{i}]", environ) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise SettingsError(path, f"the environment has no {match[1]}; set it, or take ${{{match[1]}}} out")
        return environ[match[1]]

    text = VARIABLE.sub(replace, value)
    try:
        text.encode()
    except UnicodeEncodeError:  # nobody could be sent it, nor another process be told
        told = "what the environment holds for it is no text in the encoding that is set here"
        raise SettingsError(path, f"{told}, {sys.getfilesystemencoding()}") from None
    return text


def _convert(tree: dict[str, Any]) -> Settings:
    _refuse_unknown(Settings, tree, "")
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        path = _named(where.rstrip("`").lstrip(".") or "settings", tree)
        wrong = message.removeprefix("Invalid enum value ")
        if wrong != message and (choices := _choices(path)):
            raise SettingsError(path, f"expected {' or '.join(choices)}, got {wrong}") from None
        if missing := MISSING.fullmatch(message):
            raise SettingsError(path, f"{missing[1]} has to be given") from None
        raise SettingsError(_with_key(path, tree), _expected(path, message)) from None


def _expected(path: str, message: str) -> str:
    """What a value is to be and what it is, as msgspec says it, in the words that people know the settings by."""
    from .reference import named
    from .template import EXAMPLES

    got = GOT.search(message)
    given = f", got {KINDS.get(got[1], got[1])}" if got else ""
    setting = named(path)
    if setting is None:
        return (
            f"expected table{given}" if message.startswith("Expected `object`") else message[:1].lower() + message[1:]
        )
    if path.endswith("]"):  # one of a list, or of a table
        return f"expected {setting.kind.partition(' of ')[2].removesuffix('s')}{given}"
    if longer := LONGER.match(message):
        return f"expected {setting.kind}, at most {float(longer[1]):.0f}"
    example = EXAMPLES.get(setting.path, '["…", "…"]' if setting.kind == "list of texts" else "")
    return f"expected {setting.kind}{f', such as {example}' if example else ''}{given}"


def _named(path: str, tree: dict[str, Any]) -> str:
    """The path with the server's name in it, where msgspec only says that it is some value of a table."""
    if "[...]" not in path:
        return path
    rest = path.partition("[...]")[2].lstrip(".")
    for name, server in tree.get("servers", {}).items():
        try:
            msgspec.convert(server, Server)
        except msgspec.ValidationError:
            return f"servers.{name}.{rest}".rstrip(".")
    return path


def _with_key(path: str, tree: dict[str, Any]) -> str:
    """The path with the key in it, where msgspec only says that it is some value of a table of texts."""
    table = path.removesuffix("[...]")
    of, _, last = table.rpartition(".")
    server = tree.get("servers", {}).get(of.removeprefix("servers."), {}) if table != path else {}
    return next((f"{table}.{key}" for key, value in server.get(last, {}).items() if not isinstance(value, str)), path)


def _hint(section: type[msgspec.Struct], key: str, fields: Iterable[str]) -> str:
    """What somebody meant by a key that is not there."""
    if told := ELSEWHERE.get((section, key)):
        return f"; {told}"
    near = difflib.get_close_matches(key, fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(fields))}"


def _section_in(kind: Any) -> type[msgspec.Struct] | None:
    """The table that a list of this type is made of; None where it is made of none."""
    return next((_section(one) for one in get_args(kind)), None) if get_origin(kind) is tuple else None


def _refuse_unknown(section: type[msgspec.Struct], tree: object, path: str) -> None:
    """Name an unknown key with the nearest that exists; types are left to the conversion."""
    if not isinstance(tree, dict):
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if key not in fields:
            raise SettingsError(here, f"unknown key{_hint(section, key, fields)}")
        kind = fields[key]
        if section is Settings and key == "servers" and isinstance(value, dict):
            for name, server in value.items():
                _refuse_unknown(Server, server, f"{here}.{name}")
        elif (table := _section(kind)) is not None:
            _refuse_unknown(table, value, here)
        elif (table := _section_in(kind)) is not None and isinstance(value, list):
            for index, entry in enumerate(value):
                _refuse_unknown(table, entry, f"{here}[{index}]")
