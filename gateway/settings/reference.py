"""Every setting as people are told of it, taken from the definitions so that none is missing."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect as kinds

from ...mux.limits import Pooling
from .definitions import Server, Settings

SERVERS: Final = "servers"
ANY_SERVER: Final = "servers.NAME"


class Setting(NamedTuple):
    """One setting."""

    section: str
    """Its table: `gateway`, `gateway.tls`, `servers.NAME`, `auth.tokens[]` for each entry of a list."""
    key: str
    kind: str
    """What its value may be, in words."""
    default: str | None
    """What counts where none is given, as TOML; None where a value has to be given, or nothing counts."""
    meaning: str
    is_inherited: bool = False
    """True for a key of a server that overrides the one of `[pooling]`."""

    @property
    def path(self) -> str:
        """As errors name it."""
        return f"{self.section}.{self.key}"


class Table(NamedTuple):
    """One table of the settings file."""

    section: str
    meaning: str
    settings: tuple[Setting, ...]


@cache
def tables() -> tuple[Table, ...]:
    """Every table with its settings, in the order of the definitions; one that stands in another follows it."""
    found: list[Table] = []
    for field in _fields(Settings):
        is_servers = field.name == SERVERS
        found += _tables(Server if is_servers else field.type.cls, ANY_SERVER if is_servers else field.name)
    return tuple(found)


def every() -> Iterator[Setting]:
    """Every setting."""
    for table in tables():
        yield from table.settings


def named(path: str) -> Setting | None:
    """The setting whose value, or a part of it, an error's path names; None where that is no setting."""
    known = re.sub(rf"^{SERVERS}\.[^.]+\.", f"{ANY_SERVER}.", path).replace(
        f"{ANY_SERVER}.event_log.", "pooling.event_log."
    )
    known = re.sub(r"\[\d+\]", "[]", known.removesuffix("[...]"))
    return next((setting for setting in every() if setting.path == known.removesuffix("[]")), None)


def as_toml(value: object) -> str:
    """A value as it is written in the file."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(one)}" for key, one in value.items()) + " }" if value else "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(as_toml(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _tables(kind: type[msgspec.Struct], section: str) -> list[Table]:
    meanings = _meanings(kind)
    settings: list[Setting] = []
    below: list[Table] = []
    for field in _fields(kind):
        is_inherited = kind is Server and field.name in Pooling.__struct_fields__
        inner, path = _table_in(field.type), f"{section}.{field.name}"
        if inner is not None and not is_inherited:
            below += _tables(inner, path + ("[]" if isinstance(field.type, kinds.VarTupleType) else ""))
        meaning = _meanings(Pooling)[field.name] if is_inherited else meanings[field.name]
        settings.append(Setting(section, field.name, _in_words(field.type), _default(field), meaning, is_inherited))
    return [Table(section, inspect.cleandoc(kind.__doc__ or "").partition(": ")[2], tuple(settings)), *below]


def _fields(kind: type[msgspec.Struct]) -> tuple[Any, ...]:
    described = kinds.type_info(kind)
    assert isinstance(described, kinds.StructType)
    return described.fields


def _default(field: kinds.Field) -> str | None:
    if field.required:
        return None
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return None if value is None else as_toml(value)


def _table_in(kind: kinds.Type) -> type[msgspec.Struct] | None:
    """The table that a setting of this type is, or a list of them is made of."""
    kind = _given(kind)
    if isinstance(kind, kinds.VarTupleType):
        kind = kind.item_type
    return kind.cls if isinstance(kind, kinds.StructType) else None


def _given(kind: kinds.Type) -> kinds.Type:
    """The type of a value that is given, where it may be left out as well."""
    if isinstance(kind, kinds.UnionType):
        [kind] = [one for one in kind.types if not isinstance(one, kinds.NoneType)]
    return kind


def _in_words(kind: kinds.Type) -> str:
    kind = _given(kind)
    unit = ""
    if isinstance(kind, kinds.Metadata):
        unit, kind = (kind.extra_json_schema or {}).get("title", ""), kind.type
    match kind:
        case kinds.IntType() | kinds.FloatType():
            return (unit or ("whole number" if isinstance(kind, kinds.IntType) else "number")) + _bounds(kind)
        case kinds.LiteralType():
            return " or ".join(f'"{value}"' for value in kind.values)
        case kinds.VarTupleType():
            item = _in_words(kind.item_type)
            return f"list of {item}" if isinstance(kind.item_type, kinds.LiteralType) else f"list of {item}s"
        case kinds.DictType():
            return "table of texts"
    return {kinds.StrType: "text", kinds.BoolType: "true or false", kinds.StructType: "table"}[type(kind)]


def _bounds(kind: kinds.IntType | kinds.FloatType) -> str:
    if kind.le is not None and isinstance(kind, kinds.IntType):  # the longest time, a page says once
        return f", {kind.ge} to {kind.le}"
    if kind.ge is not None:
        return f", {kind.ge:g} or more"
    return f", more than {kind.gt:g}" if kind.gt is not None else ""


@cache
def _meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The text under each field of a class; where it has none of its own, that of the class from which it comes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith(__name__.partition(".")[0]):
            continue
        [written] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(written, ast.ClassDef)
        for field, text in pairwise(written.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = " ".join(meaning.split())
    return found
