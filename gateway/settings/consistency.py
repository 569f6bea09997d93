"""Which settings can hold together: values that contradict each other, and files that they name."""

import ipaddress
import re
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from ...transports.upstream.http import HeaderBlock, host_of
from .definitions import NAME, STDIO, AuthSection, OAuth, Server, Settings, SettingsError
from .spelling import fault_in_host, fault_in_origin, fault_in_token

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

WIRE: Final = re.compile("[!-~]*")
"""What stands in a request as it is."""

SCOPE: Final = re.compile(r"[!#-\[\]-~]+( [!#-\[\]-~]+)*")  # RFC 6749, 3.3
SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
FRAMING: Final = frozenset({"content-length", "host", "transfer-encoding", "upgrade"})
"""Headers that the gateway writes itself, about the connection and the body: a second one breaks the request."""

OF_ONE_MESSAGE: Final = FRAMING | {
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-type",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
}
"""Headers about one connection, one body or what may answer it: another message, on another connection, has its own."""

RESERVED: Final = frozenset({"authorization", "cookie", "last-event-id"})
"""A client's secrets."""

OWN_PREFIXES: Final = ("mcp-", "sec-websocket-", "trunkline-")


def is_loopback(host: str) -> bool:
    """True for a name or an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
            # Without a passphrase, OpenSSL would ask the terminal for one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(gateway.tls.cert, gateway.tls.key, password="")
        except (OSError, ValueError) as error:
            told = f"cert and key cannot be used: {_reason(error)}; give a pair in PEM, the key without a passphrase"
            raise SettingsError("gateway.tls", told) from None
    if gateway.public_url and not _is_place(gateway.public_url):
        told = "expected https://HOST, as clients reach this gateway; it goes over the wire in ASCII: write xn--…"
        raise SettingsError("gateway.public_url", told)
    if gateway.admin_token and (fault := fault_in_token(gateway.admin_token)):
        raise SettingsError("gateway.admin_token", fault)
    for key, fault_in in (("allowed_hosts", fault_in_host), ("allowed_origins", fault_in_origin)):
        for index, text in enumerate(getattr(gateway, key)):
            if fault := fault_in(text):
                raise SettingsError(f"gateway.{key}[{index}]", fault)
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


def _is_place(url: str) -> bool:
    """True for the URL of a host, spelled as it goes over the wire."""
    parts = _parts_of(url)
    if parts is None or not WIRE.fullmatch(url):
        return False
    is_bare = "@" not in parts.netloc and parts.path in ("", "/") and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and is_bare


def _parts_of(url: str) -> SplitResult | None:
    """A URL, taken apart; None where it has no host, or a port that is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _reason(error: OSError | ValueError) -> str:
    """Why a file cannot be read; an error of TLS is an OSError."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


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
    if auth.mode == "proxy":
        if not settings.gateway.trusted_proxies:
            raise SettingsError("gateway.trusted_proxies", 'mode "proxy" needs the addresses of the proxy')
        _check_proxy(auth)
    if auth.mode == "jwt":
        _check_jwt(auth)
    if auth.mode == "tokens" and not auth.tokens:
        raise SettingsError("auth.tokens", 'mode "tokens" needs at least one token')
    first: dict[str, int] = {}
    for index, token in enumerate(auth.tokens):
        if not SHA256.fullmatch(token.sha256):
            told = "expected the token's hash, 64 hexadecimal digits: `trunkline token` prints both"
            raise SettingsError(f"auth.tokens[{index}].sha256", told)
        if not token.subject:
            raise SettingsError(f"auth.tokens[{index}].subject", "a token needs a subject")
        same = first.setdefault(token.sha256.lower(), index)
        if same != index:
            raise SettingsError(
                f"auth.tokens[{index}].sha256", f"auth.tokens[{same}] is the same token, and one stands for one user"
            )
    if auth.mode == "none":
        _check_nobody_is_asked(auth)


def _check_nobody_is_asked(auth: AuthSection) -> None:
    """Whoever gives what clients are to prove themselves with means that they do."""
    given = {"tokens": [token for token in auth.tokens if not token.admin]}
    for key, value in (given | {key: getattr(auth, key) for key in ("secret", "jwks", "issuer", "audience")}).items():
        if value:
            mode = "tokens" if key == "tokens" else "jwt"
            raise SettingsError(
                f"auth.{key}", f'without mode = "{mode}" nobody is asked for it; name that, or leave it out'
            )


def _check_proxy(auth: AuthSection) -> None:
    for key in ("subject_header", "tenant_header"):
        header = getattr(auth, key)
        if (header or key == "subject_header") and (not _is_header(header) or _is_own(header)):
            raise SettingsError(f"auth.{key}", "expected a header of the proxy's own, such as X-Auth-Subject")
    if auth.subject_header.lower() == auth.tenant_header.lower():
        raise SettingsError("auth.tenant_header", "subject_header names the same; a tenant has a header of its own")


def _check_jwt(auth: AuthSection) -> None:
    for key in ("issuer", "audience"):
        if not getattr(auth, key):
            raise SettingsError(f"auth.{key}", 'mode "jwt" needs it')
    if not auth.subject_claim:
        raise SettingsError("auth.subject_claim", "a token without subject is nobody's: name its claim")
    if bool(auth.secret) == bool(auth.jwks):
        raise SettingsError("auth.jwks", "give either jwks (public keys) or secret")
    symmetric = [name.startswith("HS") for name in auth.algorithms]
    if not symmetric or "none" in auth.algorithms or symmetric != [bool(auth.secret)] * len(symmetric):
        raise SettingsError("auth.algorithms", "HS256 and its like go with secret, all others with jwks; never none")
    import jwt

    for name in auth.algorithms:
        if name not in jwt.algorithms.get_default_algorithms():
            raise SettingsError("auth.algorithms", f"{name} is none; expected names such as RS256, ES256, HS256")
    if not auth.jwks:
        return
    if auth.jwks.startswith(("http://", "https://")):
        _check_jwks_url(auth.jwks)
        return
    from ..jwt_identity import read_keys

    try:
        read_keys(Path(auth.jwks).read_text())
    except (OSError, ValueError):
        raise SettingsError("auth.jwks", "no JSON Web Key Set with a key to use can be read from this file") from None


def _check_jwks_url(text: str) -> None:
    url = _parts_of(text)
    if url is None:
        raise SettingsError("auth.jwks", "expected https://HOST/PATH, or a file")
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise SettingsError("auth.jwks", "keys are read over https, or from a file")


def _check_address(path: str, server: Server) -> None:
    if bool(server.url) == bool(server.command):
        raise SettingsError(path, "give either url or command")
    if server.command or server.url.startswith(STDIO):
        _check_process(path, server)
        return
    if server.env:
        raise SettingsError(f"{path}.env", "only a command has an environment; leave it out")
    try:
        url = urlsplit(server.url)
        usable = bool(host_of(url)) and url.port != 0
    except ValueError:
        raise SettingsError(f"{path}.url", "its host or its port is none") from None
    if url.scheme not in SCHEMES or not usable:
        raise SettingsError(f"{path}.url", f"expected {', '.join(SCHEMES)}://HOST/PATH, or {STDIO}COMMAND")
    if not _is_sent_as_it_is(url):
        raise SettingsError(
            f"{path}.url", "it goes over the wire in ASCII, without spaces: write xn--… in its host, %… else"
        )
    if server.ca:
        try:
            ssl.create_default_context(cafile=server.ca)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path}.ca", f"no certificates can be read from it: {_reason(error)}") from None


def _is_sent_as_it_is(url: SplitResult) -> bool:
    """True where host, path and query are spelled as they are in a request."""
    return WIRE.fullmatch(f"{url.hostname}{url.path}{url.query}") is not None


def _check_process(path: str, server: Server) -> None:
    key = "command" if server.command else "url"
    try:
        process = server.process
    except ValueError as error:
        raise SettingsError(f"{path}.{key}", f"it is no command line: {error}") from None
    if not process or not process[0] or any("\0" in word for word in process):
        raise SettingsError(f"{path}.{key}", "expected a program and its arguments")
    for name, value in server.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise SettingsError(f"{path}.env", "a variable has a name without =, and no NUL")
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
    names = [name.lower() for name in server.headers]
    for name in server.headers:
        if name.lower() in FRAMING:
            raise SettingsError(f"{path}.headers", f"{name} is written by the gateway itself; leave it out")
        if names.count(name.lower()) > 1:
            raise SettingsError(f"{path}.headers", f"{name} is named twice")
    if not server.eras:
        raise SettingsError(f"{path}.eras", 'name "legacy", "modern" or both')
    if "legacy" not in server.eras and not server.url.startswith(("http://", "https://")):
        raise SettingsError(f"{path}.eras", "without legacy, the server needs an http(s) url in this version")
    if server.oauth is not None:
        _check_oauth(f"{path}.oauth", server, server.oauth)
    _check_passed_on(path, server)


def _check_passed_on(path: str, server: Server) -> None:
    if server.forward_headers and urlsplit(server.url).scheme in ("ws", "wss"):
        told = "a WebSocket has no headers for a call; those of session_headers go with its opening"
        raise SettingsError(f"{path}.forward_headers", told)
    seen: set[str] = set()
    for key in ("session_headers", "forward_headers"):
        for header in getattr(server, key):
            if "*" in header:
                raise SettingsError(f"{path}.{key}", "there are no wildcards: list each header")
            if not _is_header(header):
                raise SettingsError(f"{path}.{key}", f"{header[:64]!r} is no header's name")
            if _is_own(header):
                raise SettingsError(f"{path}.{key}", f"{header} is never passed on from a client")
            if header.lower() in seen:
                told = "once is enough, and a header is either fixed for a session or copied from each request"
                raise SettingsError(f"{path}.{key}", f"{header} is named twice: {told}")
            seen.add(header.lower())


def _is_header(name: str) -> bool:
    """True for what can be the name of a header."""
    try:
        HeaderBlock({name: ""})
    except ValueError:
        return False
    return True


def _is_own(header: str) -> bool:
    """True for a header that has a meaning in one message, or between client and gateway alone."""
    low = header.lower()
    return low in RESERVED or low in OF_ONE_MESSAGE or low.startswith(OWN_PREFIXES)


def _check_oauth(path: str, server: Server, oauth: OAuth) -> None:
    if "authorization" in (header.lower() for header in server.headers):
        raise SettingsError(path, "headers has an Authorization already; give one of the two")
    if "http" not in server.url.partition("://")[0]:
        raise SettingsError(path, "tokens are only renewed over HTTP; give a WebSocket its headers")
    for where, url in ((f"{path.removesuffix('.oauth')}.url", server.url), (f"{path}.issuer", oauth.issuer)):
        parts = _parts_of(url)
        if parts is None or not _is_sent_as_it_is(parts):
            raise SettingsError(where, "expected https://HOST, as it is spelled in a request")
        is_https = parts.scheme.endswith("https")
        if not (is_https or (parts.scheme.endswith("http") and is_loopback(parts.hostname or ""))):
            raise SettingsError(where, "tokens go over https, or stay on this machine")
    if urlsplit(server.url).username is not None:
        told = "its user and password would go to the issuer as well; leave them out"
        raise SettingsError(f"{path.removesuffix('.oauth')}.url", told)
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
    import jwt

    symmetric = oauth.algorithm == "none" or oauth.algorithm.startswith("HS")
    if symmetric or oauth.algorithm not in jwt.algorithms.get_default_algorithms():
        raise SettingsError(f"{path}.algorithm", "expected one with a private key: RS256, ES256, EdDSA …")
    try:
        jwt.encode({}, Path(oauth.private_key).read_text(), algorithm=oauth.algorithm)
    except (OSError, ValueError, TypeError, AttributeError, jwt.PyJWTError):  # whatever a key of another kind leads to
        raise SettingsError(f"{path}.private_key", f"no key for {oauth.algorithm} can be read from this file") from None
