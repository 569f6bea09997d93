"""The proxy through which a server is reached, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say."""

from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for this URL; none for what is on this machine.

    One without a scheme is one of HTTP, as other clients take it.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = getproxies().get(parts.scheme)
    if proxy is None or _is_direct(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_proxied_otherwise(url: str) -> bool:
    """Whether a proxy is named for this URL that is not used here: by `ALL_PROXY`, or another than one of HTTP."""
    parts, proxies = urlsplit(url), getproxies()
    own = proxies.get(parts.scheme)
    is_used = "all" not in proxies if own is None else own.startswith(("http://", "https://")) or "://" not in own
    return not is_used and not _is_direct(parts.hostname or "")


def _is_direct(host: str) -> bool:
    return _is_loopback(host) or bool(proxy_bypass(host))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
