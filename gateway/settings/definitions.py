"""What the program can be told: every setting with its type, its default, its bounds, and what it means.

The text under a setting is its meaning for people: the reference and the file that `trunkline init` writes tell it.
"""

import hashlib
import re
import shlex
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from ...mux.limits import Bytes, Count, EventLogLimits, Pooling, Reuse, Seconds, Wait
from ..exits import ExitCode, Failure

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STDIO: Final = "stdio:"


class SettingsError(Failure):
    """A setting is wrong. `path` names it (`gateway.port`); the message says what to do."""

    exit = ExitCode.WRONG

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class NotStarted(SettingsError):
    """What a setting names cannot be used now: its port is taken, nobody answers at its URL."""

    exit = ExitCode.NOT_STARTED


Read = Callable[[], "Settings"]
"""Reads the settings; raises `SettingsError`."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the settings file. Its values are not shown: some of them are secrets."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class TLS(Section, frozen=True):
    """`tls`: the listener's certificate; both files are given, or none."""

    cert: str = ""
    """A file with the certificate and its chain, in PEM; empty for plain HTTP."""
    key: str = ""
    """A file with the certificate's private key, in PEM."""


Port = Annotated[int, Meta(ge=0, le=65535)]


class GatewaySection(Section, frozen=True):
    """`[gateway]`: the listener and the process."""

    host: str = "127.0.0.1"
    """The address to listen on. Beyond loopback it needs `allowed_hosts`, and an auth mode or `--insecure`."""
    port: Port = 8920
    """The port to listen on; 0 for any that is free."""
    workers: Count = 1
    """Processes that serve. More than one needs a directory that they share: redis or database."""
    drain_timeout: Wait = 30
    """What calls in flight have to end, once the gateway was told to stop."""
    admin_token: str = ""
    """The bearer token that opens the status page and its JSON to whoever has it."""
    public_url: str = ""
    """The URL by which clients reach the gateway, where that is not its own address: `https://HOST`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients reach a listener beyond loopback; a request with another Host is refused."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the gateway from a browser: `https://app.example`."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of the proxy whose identity headers count, with `auth.mode = "proxy"`."""
    tls: TLS = TLS()
    """The listener's certificate; without one, plain HTTP."""


class DirectorySection(Section, frozen=True):
    """`[directory]`: where workflows are recorded."""

    backend: Literal["memory", "redis", "database"] = "memory"
    """`memory` serves one process, and forgets at its end; with the others, any worker serves any session."""
    url: str = ""
    """Where the directory is: `redis://127.0.0.1:6379/0`, `sqlite+aiosqlite:///x.db`, `postgresql+asyncpg://…`."""


class TokenEntry(Section, frozen=True):
    """An entry of `tokens`: one bearer token that is accepted, by its hash, and whom it stands for."""

    sha256: str
    """The token's SHA-256, in hexadecimal digits: `trunkline token` prints token and entry."""
    tenant: str
    """The tenant of the subject; may be empty."""
    subject: str
    """Whom the token stands for."""
    admin: bool = False
    """Whether it opens the status page and its JSON as well."""


class AuthSection(Section, frozen=True):
    """`[auth]`: how a request becomes a principal."""

    mode: Literal["none", "tokens", "jwt", "proxy"] = "none"
    """Who vouches for a client: nobody (everybody is one), its bearer token, a JSON Web Token, or a trusted proxy."""
    tokens: tuple[TokenEntry, ...] = ()
    """The tokens that are accepted, with `mode = "tokens"`."""
    issuer: str = ""
    """The `iss` that a JSON Web Token must have."""
    audience: str = ""
    """The `aud` that a JSON Web Token must have."""
    secret: str = ""
    """The key of symmetric algorithms (HS256 and its like); or give `jwks`."""
    jwks: str = ""
    """The issuer's public keys, as a JSON Web Key Set: a file, or an https URL, which is read without a proxy."""
    algorithms: tuple[str, ...] = ("RS256",)
    """The algorithms that a JSON Web Token may be signed with."""
    subject_claim: str = "sub"
    """The claim that names the subject; a token without it is refused."""
    tenant_claim: str = "tenant"
    """The claim that names the tenant; a token without it has the empty one."""
    subject_header: str = "X-Auth-Subject"
    """The header in which the trusted proxy names the subject, with `mode = "proxy"`."""
    tenant_header: str = "X-Auth-Tenant"
    """The header in which the trusted proxy names the tenant."""


class EventLogSection(EventLogLimits, frozen=True, forbid_unknown_fields=True):
    """`event_log`: what is kept for resumption."""


class PoolingSection(Pooling, frozen=True, forbid_unknown_fields=True):
    """`[pooling]`: the default for every server, in the bounds that a limit must have."""

    event_log: EventLogSection = EventLogSection()


class ServerEventLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`event_log` of a server: what is kept for one of its workflows, where that differs from `[pooling]`."""

    events: Count | None = None
    bytes: Bytes | None = None


TokenEndpointAuthMethod = Literal["client_secret_basic", "client_secret_post", "private_key_jwt"]


class OAuth(Section, frozen=True):
    """`oauth` of a server: the gateway's own client credentials, which go to this issuer and nowhere else."""

    issuer: str
    """The authorization server, letter by letter as it names itself; the secret goes to no other."""
    client_id: str
    """The name by which the issuer knows the gateway."""
    client_secret: str = ""
    """The secret that proves it; or give `private_key`."""
    private_key: str = ""
    """A file with the key that signs for `private_key_jwt`, in PEM."""
    algorithm: str = "RS256"
    """The algorithm that `private_key` signs with."""
    scope: str = ""
    """What the token is to be good for; empty for what the server asks for."""
    token_endpoint_auth_method: TokenEndpointAuthMethod = "client_secret_basic"  # noqa: S105 - its name, no password
    """How the gateway proves itself to the issuer."""

    @property
    def identity(self) -> str:
        """Names the credential in the key of pooled sessions: a new secret, key or token of it drops none of them."""
        return hashlib.sha256("\n".join((self.issuer, self.client_id, self.scope)).encode()).hexdigest()[:32]


class Server(Section, frozen=True):
    """`[servers.NAME]`: one MCP server, and any pooling key that is to differ for it."""

    url: str = ""
    """Where it is: `http(s)://` (Streamable HTTP, else HTTP+SSE), `sse+http(s)://`, `ws(s)://` or `stdio:COMMAND`."""
    command: tuple[str, ...] = ()
    """The program and arguments of a stdio server that the gateway starts; in place of `url`."""
    env: dict[str, str] = {}
    """Variables for that program, secrets among them, beside PATH, HOME and their like: it inherits no others."""
    headers: dict[str, str] = {}
    """Headers of every request to the server, such as the gateway's own credential; a client's token never is one."""
    forward_headers: tuple[str, ...] = ()
    """Headers that are copied from each request of a client to its call; not part of what tells sessions apart."""
    session_headers: tuple[str, ...] = ()
    """Headers of a client that are fixed when its session opens; sessions with other values are other sessions."""
    ca: str = ""
    """A file with the certificates that may vouch for the server, in PEM; empty for those of the system."""
    oauth: OAuth | None = None
    """Client credentials with which the gateway gets a token for the server."""
    stateless: bool = False
    """A session that the server has lost may be opened anew without a word."""
    trust_annotations: bool = False
    """The server's word that a tool is read-only or idempotent is good: a call that may have run is sent again."""
    eras: tuple[Literal["legacy", "modern"], ...] = ("legacy", "modern")
    """What is offered to clients of what the server speaks: sessions (`legacy`), 2026-07-28 without them (`modern`)."""
    reuse: Reuse | None = None
    idle_timeout: Seconds | None = None
    resume_window: Seconds | None = None
    request_timeout: Seconds | None = None
    spares: Annotated[int, Meta(ge=0)] | None = None
    max_channel_age: Wait | None = None
    max_workflows: Count | None = None
    max_workflows_per_user: Count | None = None
    max_workflows_per_tenant: Count | None = None
    max_channels_per_user: Count | None = None
    max_inflight_per_workflow: Count | None = None
    max_inflight_per_channel: Count | None = None
    event_log: ServerEventLog | None = None

    @property
    def process(self) -> tuple[str, ...]:
        """The command line of a server that is started here, from `command` or a `stdio:` url; empty for others."""
        return self.command or (tuple(shlex.split(self.url[len(STDIO) :])) if self.url.startswith(STDIO) else ())


class CompatSection(Section, frozen=True):
    """`[compat]`: the old path, one upstream session for each call."""

    sdk_habits: bool = False
    """With `reuse = "none"`, also do as the SDK's clients: the GET stream, `tools/list`, the end before the answer."""


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
        if server.event_log is not None:
            own["event_log"] = msgspec.structs.replace(self.pooling.event_log, **_given(server.event_log))
        return msgspec.structs.replace(self.pooling, **{k: v for k, v in own.items() if v is not None})


def _given(section: msgspec.Struct) -> dict[str, object]:
    return {key: value for key, value in msgspec.structs.asdict(section).items() if value is not None}
