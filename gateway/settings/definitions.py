"""Settings: a TOML file, the environment and the command line become one frozen value, or an error that names a path.

A key in the environment is `TRUNKLINE_SECTION__KEY` (`TRUNKLINE_GATEWAY__PORT`, `TRUNKLINE_SERVERS__FILES__URL`); it
wins over the file, and the command line wins over both. `${NAME}` in a string is replaced from the environment.
"""

import difflib
import hashlib
import ipaddress
import json
import re
import shlex
import ssl
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

import jwt
import msgspec
from msgspec import Meta

from ..mux.limits import MIB, EventLogLimits, Pooling, Reuse
from ..transports.upstream.http import HeaderBlock

PREFIX: Final = "TRUNKLINE_"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
STDIO: Final = "stdio:"
SCHEMES: Final = ("http", "https", "sse+http", "sse+https", "ws", "wss")
DIRECTORIES: Final = {
    "redis": (
        "redis://",
        "rediss://",
        "unix://",
        "redis+sentinel://",
        "rediss+sentinel://",
        "redis+cluster://",
        "rediss+cluster://",
    ),
    "database": ("sqlite+aiosqlite://", "postgresql+asyncpg://"),
}
"""How the URLs of shared directories begin."""

SCOPE: Final = re.compile(r"[!#-\[\]-~]+( [!#-\[\]-~]+)*")  # RFC 6749, 3.3
SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
HOP_BY_HOP: Final = frozenset(
    (
        "accept",
        "connection",
        "content-length",
        "content-type",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
RESERVED: Final = frozenset({"authorization", "cookie", "host"})


class SettingsError(Exception):
    """A setting is wrong. `path` names it (`gateway.port`); the message says what to do."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the settings file. Its values are not shown: some of them are secrets."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class TLS(Section, frozen=True):
    """Files of the listener's certificate chain and key; both empty for plain HTTP."""

    cert: str = ""
    key: str = ""


Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class GatewaySection(Section, frozen=True):
    """`[gateway]`: the listener and the process."""

    host: str = "127.0.0.1"
    port: Port = 8920
    workers: Count = 1
    drain_timeout: Annotated[float, Meta(ge=0)] = 30
    admin_token: str = ""
    public_url: str = ""
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    tls: TLS = TLS()


class DirectorySection(Section, frozen=True):
    """`[directory]`: where workflows are recorded."""

    backend: Literal["memory", "redis", "database"] = "memory"
    url: str = ""


class TokenEntry(Section, frozen=True):
    """One accepted bearer token, by its SHA-256, and whom it stands for."""

    sha256: str
    tenant: str
    subject: str
    admin: bool = False


class AuthSection(Section, frozen=True):
    """`[auth]`: how a request becomes a principal."""

    mode: Literal["none", "tokens", "jwt", "proxy"] = "none"
    tokens: tuple[TokenEntry, ...] = ()
    issuer: str = ""
    audience: str = ""
    secret: str = ""
    jwks: str = ""
    algorithms: tuple[str, ...] = ("RS256",)
    subject_claim: str = "sub"
    tenant_claim: str = "tenant"
    subject_header: str = "X-Auth-Subject"
    tenant_header: str = "X-Auth-Tenant"


class EventLogSection(EventLogLimits, frozen=True, forbid_unknown_fields=True):
    """`event_log`: what is kept for resumption."""

    events: Count = 1000
    bytes: Count = 4 * MIB
    total_bytes: Count = 256 * MIB


class PoolingSection(Pooling, frozen=True, forbid_unknown_fields=True):
    """`[pooling]`: the default for every server, in the bounds that a limit must have."""

    idle_timeout: Seconds = 1800
    resume_window: Seconds = 300
    request_timeout: Seconds = 300
    spares: Annotated[int, Meta(ge=0)] = 0
    max_channel_age: Annotated[float, Meta(ge=0)] = 0
    max_workflows: Count = 10_000
    max_workflows_per_user: Count = 100
    max_workflows_per_tenant: Count = 2_000
    max_channels_per_user: Count = 16
    max_inflight_per_workflow: Count = 64
    max_inflight_per_channel: Count = 256
    event_log: EventLogSection = EventLogSection()


TokenEndpointAuthMethod = Literal["client_secret_basic", "client_secret_post", "private_key_jwt"]


class OAuth(Section, frozen=True):
    """`oauth` of a server: the gateway's own client credentials, which go to this issuer and nowhere else."""

    issuer: str
    client_id: str
    client_secret: str = ""
    private_key: str = ""
    """A file with the key that signs for `private_key_jwt`, in PEM."""
    algorithm: str = "RS256"
    scope: str = ""
    """Empty for what the server asks for."""
    token_endpoint_auth_method: TokenEndpointAuthMethod = "client_secret_basic"  # noqa: S105 - its name, no password

    @property
    def identity(self) -> str:
        """Names the credential in the key of pooled sessions: a new secret, key or token of it drops none of them."""
        return hashlib.sha256("\n".join((self.issuer, self.client_id, self.scope)).encode()).hexdigest()[:32]


class Server(Section, frozen=True):
    """`[servers.NAME]`: one MCP server, and any pooling key that is to differ for it."""

    url: str = ""
    command: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    forward_headers: tuple[str, ...] = ()
    session_headers: tuple[str, ...] = ()
    ca: str = ""
    oauth: OAuth | None = None
    stateless: bool = False
    trust_annotations: bool = False
    eras: tuple[Literal["legacy", "modern"], ...] = ("legacy", "modern")
    reuse: Reuse | None = None
    idle_timeout: Seconds | None = None
    resume_window: Seconds | None = None
    request_timeout: Seconds | None = None
    spares: Annotated[int, Meta(ge=0)] | None = None
    max_channel_age: Annotated[float, Meta(ge=0)] | None = None
    max_workflows: Count | None = None
    max_workflows_per_user: Count | None = None
    max_workflows_per_tenant: Count | None = None
    max_channels_per_user: Count | None = None
    max_inflight_per_workflow: Count | None = None
    max_inflight_per_channel: Count | None = None
    event_log: EventLogSection | None = None

    @property
    def process(self) -> tuple[str, ...]:
        """The command line of a server that is started here, from `command` or a `stdio:` url; empty for others."""
        return self.command or (tuple(shlex.split(self.url[len(STDIO) :])) if self.url.startswith(STDIO) else ())


class CompatSection(Section, frozen=True):
    """`[compat]`: the old path, one upstream session for each call."""

    sdk_habits: bool = False
    """With `reuse = "none"`, also do what the SDK's clients do beside a call: the GET stream and `tools/list`."""


class Settings(Section, frozen=True):
    """Everything that the program can be told."""

    gateway: GatewaySection = GatewaySection()
    directory: DirectorySection = DirectorySection()
    auth: AuthSection = AuthSection()
    pooling: PoolingSection = PoolingSection()
    compat: CompatSection = CompatSection()
    servers: dict[str, Server] = {}

    def pooling_for(self, name: str) -> Pooling:
        """The pooling of one server: the default with its own keys over it."""
        server = self.servers[name]
        own = {field: getattr(server, field) for field in Pooling.__struct_fields__}
        return msgspec.structs.replace(self.pooling, **{k: v for k, v in own.items() if v is not None})


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
    tree = _read(path) if path is not None else {}
    for name, text in environ.items():
        if name.startswith(PREFIX) and "__" in name:
            keys = [part.lower() for part in name.removeprefix(PREFIX).split("__")]
            _put(tree, keys, _value(text, is_text=_is_text(keys)))
    for upstream in upstreams:
        name, found, url = upstream.partition("=")
        if not found or not url:
            raise SettingsError("--upstream", f"expected NAME=URL, got {upstream!r}")
        _put(tree, ["servers", name, "url"], url)
    for dotted, value in (overrides or {}).items():
        _put(tree, dotted.split("."), value)
    settings = _convert(_expanded(tree, "", environ))
    check(settings, insecure=insecure)
    return settings


def is_loopback(host: str) -> bool:
    """True for a name or an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError("", f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError("", f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError("", f"{path} is not TOML: {error}") from None


def _value(text: str, *, is_text: bool) -> object:
    """A value of the environment: TOML where it is one, else the text itself. A token of digits stays text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if is_text and not isinstance(value, str) else value


def _is_text(keys: Sequence[str]) -> bool:
    """True where these keys lead to a value that is text."""
    kind: Any = Settings
    for key in keys:
        if kind == dict[str, Server]:
            kind = Server
        elif kind == dict[str, str]:
            kind = str
        elif (section := _section(kind)) is not None:
            kind = next((field.type for field in msgspec.structs.fields(section) if field.name == key), None)
        else:
            return False
    return kind is str


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
            raise SettingsError(path, f"the environment has no {match[1]}")
        return environ[match[1]]

    return VARIABLE.sub(replace, value)


def _convert(tree: dict[str, Any]) -> Settings:
    _refuse_unknown(Settings, tree, "")
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").lstrip(".") or "settings"
        raise SettingsError(_named(path, tree), message[:1].lower() + message[1:]) from None


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


def _refuse_unknown(section: type[msgspec.Struct], tree: object, path: str) -> None:
    """Name an unknown key with the nearest that exists; types are left to the conversion."""
    if not isinstance(tree, dict):
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(fields))}"
            raise SettingsError(here, f"unknown key{hint}")
        kind = fields[key]
        if section is Settings and key == "servers" and isinstance(value, dict):
            for name, server in value.items():
                _refuse_unknown(Server, server, f"{here}.{name}")
        elif (table := _section(kind)) is not None:
            _refuse_unknown(table, value, here)


def check(settings: Settings, *, insecure: bool) -> None:
    """Make sure that the settings can hold together; it reads the files that they name.

    Raises:
        SettingsError: they cannot.
    """
    _check_listener(settings, insecure=insecure)
    _check_auth(settings)
    _check_directory(settings)
    _check_sharing("pooling.reuse", settings.pooling.reuse, settings)
    for name, server in settings.servers.items():
        path = f"servers.{name}"
        if not NAME.fullmatch(name):
            raise SettingsError(path, "a server's name is 1-64 characters of A-Z a-z 0-9 . _ -")
        _check_address(path, server)
        _check_server(path, server)
        if server.trust_annotations and settings.pooling_for(name).reuse == "none":
            raise SettingsError(f"{path}.trust_annotations", 'reuse = "none" sends nothing again; leave it out')
        _check_sharing(f"{path}.reuse", server.reuse, settings)


def _check_listener(settings: Settings, *, insecure: bool) -> None:
    gateway = settings.gateway
    if bool(gateway.tls.cert) != bool(gateway.tls.key):
        raise SettingsError("gateway.tls", "cert and key are given together or not at all")
    if gateway.tls.cert:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(gateway.tls.cert, gateway.tls.key)
        except OSError as error:  # an SSLError is one
            raise SettingsError("gateway.tls", f"cert and key cannot be used: {error.strerror}") from None
    public = urlsplit(gateway.public_url)
    if gateway.public_url and (public.scheme not in ("http", "https") or not public.hostname or public.path.strip("/")):
        raise SettingsError("gateway.public_url", "expected https://HOST, as clients reach this gateway")
    if gateway.trusted_proxies and settings.auth.mode != "proxy":
        raise SettingsError("gateway.trusted_proxies", 'only used with auth.mode = "proxy"; leave it out')
    for index, proxy in enumerate(gateway.trusted_proxies):
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError:
            raise SettingsError(f"gateway.trusted_proxies[{index}]", "expected an address or a network") from None
    if is_loopback(gateway.host):
        return
    if not gateway.allowed_hosts:
        raise SettingsError(
            "gateway.allowed_hosts", f"needed because {gateway.host} is not loopback: the names clients use"
        )
    if settings.auth.mode == "none" and not insecure:
        raise SettingsError(
            "auth.mode", f"{gateway.host} is not loopback: choose an auth mode, or give --insecure if you mean it"
        )


def _check_directory(settings: Settings) -> None:
    backend, url = settings.directory.backend, settings.directory.url
    scheme, found, rest = url.partition("://")
    if backend == "memory":
        if url:
            raise SettingsError("directory.url", "memory has none; name its backend: redis or database")
        if settings.gateway.workers > 1:
            raise SettingsError(
                "gateway.workers",
                "memory serves one worker: a second one would not know the sessions of the first; "
                'use directory.backend = "redis" or "database"',
            )
    elif not url:
        raise SettingsError("directory.url", f"{backend} needs one: {DIRECTORIES[backend][0]}…")
    elif not found or not rest or f"{scheme}://" not in DIRECTORIES[backend]:
        raise SettingsError("directory.url", f"for {backend}, expected one that begins with " + _either(backend))


def _either(backend: str) -> str:
    *first, last = DIRECTORIES[backend]
    return f"{', '.join(first)} or {last}"


def _check_auth(settings: Settings) -> None:
    auth = settings.auth
    if auth.mode == "proxy" and not settings.gateway.trusted_proxies:
        raise SettingsError("gateway.trusted_proxies", 'mode "proxy" needs the addresses of the proxy')
    if auth.mode == "jwt":
        _check_jwt(auth)
    if auth.mode == "tokens" and not auth.tokens:
        raise SettingsError("auth.tokens", 'mode "tokens" needs at least one token')
    for index, token in enumerate(auth.tokens):
        if not SHA256.fullmatch(token.sha256):
            raise SettingsError(f"auth.tokens[{index}].sha256", "expected 64 hexadecimal digits")
        if not token.subject:
            raise SettingsError(f"auth.tokens[{index}].subject", "a token needs a subject")


def _check_jwt(auth: AuthSection) -> None:
    for key in ("issuer", "audience"):
        if not getattr(auth, key):
            raise SettingsError(f"auth.{key}", 'mode "jwt" needs it')
    if bool(auth.secret) == bool(auth.jwks):
        raise SettingsError("auth.jwks", "give either jwks (public keys) or secret")
    symmetric = [name.startswith("HS") for name in auth.algorithms]
    if not symmetric or "none" in auth.algorithms or symmetric != [bool(auth.secret)] * len(symmetric):
        raise SettingsError("auth.algorithms", "HS256 and its like go with secret, all others with jwks; never none")
    if not auth.jwks or auth.jwks.startswith("https://"):
        return
    if auth.jwks.startswith("http://"):
        if not is_loopback(urlsplit(auth.jwks).hostname or ""):
            raise SettingsError("auth.jwks", "keys are read over https, or from a file")
        return
    try:
        json.loads(Path(auth.jwks).read_text())["keys"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError("auth.jwks", "no JSON Web Key Set can be read from this file") from None


def _check_address(path: str, server: Server) -> None:
    if bool(server.url) == bool(server.command):
        raise SettingsError(path, "give either url or command")
    if server.command or server.url.startswith(STDIO):
        _check_process(path, server)
        return
    try:
        url = urlsplit(server.url)
        usable = bool(url.hostname) and url.port != 0
    except ValueError:
        raise SettingsError(f"{path}.url", "its host or its port is none") from None
    if url.scheme not in SCHEMES or not usable:
        raise SettingsError(f"{path}.url", f"expected {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}://HOST/PATH")
    if server.ca:
        try:
            ssl.create_default_context(cafile=server.ca)
        except OSError as error:  # an SSLError is one
            raise SettingsError(f"{path}.ca", f"no certificates can be read from it: {error.strerror}") from None


def _check_process(path: str, server: Server) -> None:
    key = "command" if server.command else "url"
    try:
        process = server.process
    except ValueError as error:
        raise SettingsError(f"{path}.{key}", f"it is no command line: {error}") from None
    if not process or not process[0] or any("\0" in word for word in process):
        raise SettingsError(f"{path}.{key}", "expected a program and its arguments")
    for name in ("headers", "ca", "forward_headers", "session_headers", "oauth"):
        if getattr(server, name):
            raise SettingsError(f"{path}.{name}", "a command is no HTTP server; leave it out")


def _check_sharing(path: str, reuse: str | None, settings: Settings) -> None:
    if reuse == "user" and settings.auth.mode == "none" and not is_loopback(settings.gateway.host):
        raise SettingsError(path, "user needs verified identities on this listener: choose an auth mode")


def _check_server(path: str, server: Server) -> None:
    try:
        HeaderBlock(server.headers)
    except ValueError as error:
        raise SettingsError(f"{path}.headers", str(error)) from None
    if not server.eras:
        raise SettingsError(f"{path}.eras", 'name "legacy", "modern" or both')
    if "legacy" not in server.eras and not server.url.startswith(("http://", "https://")):
        raise SettingsError(f"{path}.eras", "without legacy, the server needs an http(s) url in this version")
    if server.oauth is not None:
        _check_oauth(f"{path}.oauth", server, server.oauth)
    for key in ("forward_headers", "session_headers"):
        for header in getattr(server, key):
            low = header.lower()
            if low in RESERVED or low in HOP_BY_HOP or low.startswith(("mcp-", "trunkline-")):
                raise SettingsError(f"{path}.{key}", f"{header} is never passed on from a client")


def _check_oauth(path: str, server: Server, oauth: OAuth) -> None:
    if "authorization" in (header.lower() for header in server.headers):
        raise SettingsError(path, "headers has an Authorization already; give one of the two")
    if "http" not in server.url.partition("://")[0]:
        raise SettingsError(path, "tokens are only renewed over HTTP; give a WebSocket its headers")
    for where, url in ((f"{path.removesuffix('.oauth')}.url", server.url), (f"{path}.issuer", oauth.issuer)):
        parts = urlsplit(url)
        is_https = parts.scheme.endswith("https")
        if not parts.hostname or not (is_https or (parts.scheme.endswith("http") and is_loopback(parts.hostname))):
            raise SettingsError(where, "tokens go over https, or stay on this machine")
    if not oauth.client_id:
        raise SettingsError(f"{path}.client_id", "the issuer knows its clients by it")
    if oauth.scope and not SCOPE.fullmatch(oauth.scope):
        raise SettingsError(f"{path}.scope", "expected names with single spaces between them")
    needed, other = "client_secret", "private_key"
    if oauth.token_endpoint_auth_method == "private_key_jwt":  # noqa: S105
        needed, other = other, needed
    if not getattr(oauth, needed) or getattr(oauth, other):
        raise SettingsError(f"{path}.{needed}", f"{oauth.token_endpoint_auth_method} needs it, and no {other}")
    if oauth.private_key:
        _check_key(path, oauth)


def _check_key(path: str, oauth: OAuth) -> None:
    symmetric = oauth.algorithm == "none" or oauth.algorithm.startswith("HS")
    if symmetric or oauth.algorithm not in jwt.algorithms.get_default_algorithms():
        raise SettingsError(f"{path}.algorithm", "expected one with a private key: RS256, ES256, EdDSA …")
    try:
        jwt.encode({}, Path(oauth.private_key).read_text(), algorithm=oauth.algorithm)
    except (OSError, ValueError, TypeError, AttributeError, jwt.PyJWTError):  # whatever a key of another kind leads to
        raise SettingsError(f"{path}.private_key", f"no key for {oauth.algorithm} can be read from this file") from None
