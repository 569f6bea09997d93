"""What people are told of the settings: every one of them, with a default that is the one that counts."""

import tomllib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from trunkline.gateway.settings import Settings
from trunkline.gateway.settings.definitions import Section
from trunkline.gateway.settings.reference import Setting, as_toml, every, tables
from trunkline.mux.limits import Pooling

TOLD = {setting.path: setting for setting in every()}


def defined(kind: Any, path: str = "") -> Iterator[str]:
    """The path of every field that can be reached from a type, by its own annotations."""
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        inner = [one for one in structs_in(field.type) if issubclass(one, Section)]
        if field.type == dict[str, inner[0]] if inner else False:
            here += ".NAME"
        elif inner and "tuple" in str(field.type):
            yield here
            here += "[]"
        elif path:
            yield here
        for one in inner:
            yield from defined(one, here)


def structs_in(kind: Any) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for argument in getattr(kind, "__args__", ()):
        yield from structs_in(argument)


def test_none_is_missing() -> None:
    paths = set(defined(Settings))
    assert {"gateway.port", "gateway.tls.cert", "auth.tokens[].sha256", "servers.NAME.oauth.issuer"} <= paths
    assert paths <= set(TOLD)
    assert {f"pooling.{name}" for name in Pooling.__struct_fields__} <= set(TOLD)
    assert {f"servers.NAME.{name}" for name in Pooling.__struct_fields__} <= set(TOLD)


@pytest.mark.parametrize("setting", TOLD.values(), ids=TOLD)
def test_each_says_what_it_means_and_what_it_may_be(setting: Setting) -> None:
    assert setting.meaning.endswith(".")
    assert setting.kind


def test_each_default_is_the_one_that_counts() -> None:
    for setting in TOLD.values():
        if "NAME" in setting.path or "[]" in setting.path:
            continue
        assert setting.default is not None, setting.path
        found: Any = Settings()
        for key in setting.path.split("."):
            found = getattr(found, key)
        assert msgspec.convert(tomllib.loads(f"value = {setting.default}")["value"], type(found)) == found


def test_a_key_that_a_server_has_of_its_own_has_no_default_but_that_of_all() -> None:
    inherited = {setting.key for setting in TOLD.values() if setting.is_inherited}
    assert inherited == set(Pooling.__struct_fields__)
    assert all(TOLD[f"servers.NAME.{key}"].default is None for key in inherited)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gateway.port", "whole number, 0 to 65535"),
        ("gateway.drain_timeout", "seconds, 0 or more"),
        ("gateway.allowed_hosts", "list of texts"),
        ("gateway.tls", "table"),
        ("auth.mode", '"jwt" or "none" or "proxy" or "tokens"'),
        ("auth.tokens", "list of tables"),
        ("auth.tokens[].admin", "true or false"),
        ("pooling.idle_timeout", "seconds, more than 0"),
        ("pooling.event_log.bytes", "bytes, 1 or more"),
        ("servers.NAME.headers", "table of texts"),
        ("servers.NAME.eras", 'list of "legacy" or "modern"'),
        ("servers.NAME.spares", "whole number, 0 or more"),
    ],
)
def test_what_a_value_may_be_is_told_in_words(path: str, words: str) -> None:
    assert TOLD[path].kind == words


def test_the_tables_come_in_order_and_say_what_they_are() -> None:
    sections = [table.section for table in tables()]
    assert sections[:3] == ["gateway", "gateway.tls", "directory"]
    assert len(sections) == len(set(sections))
    assert all(table.meaning.endswith(".") for table in tables())


def test_a_value_is_written_as_toml() -> None:
    value = {"a": ("x", 'y"'), "b": {"c": True}, "d": 1.5, "e": {}}
    assert tomllib.loads(f"value = {as_toml(value)}")["value"] == {**value, "a": ["x", 'y"']}
