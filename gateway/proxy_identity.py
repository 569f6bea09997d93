"""Identities that a reverse proxy has verified: headers of its own, believed from listed peers only."""

import ipaddress
from collections.abc import Mapping, Sequence

from ..mux.principal import Principal
from ..transports.status import Unauthorized

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ProxyIdentity:
    """Reads the subject and the tenant that a trusted proxy names. `proxies` are addresses or networks."""

    def __init__(self, proxies: Sequence[str], subject_header: str, tenant_header: str) -> None:
        self._proxies: list[Network] = [ipaddress.ip_network(proxy, strict=False) for proxy in proxies]
        self._subject = subject_header.lower()
        self._tenant = tenant_header.lower()

    def read(self, headers: Mapping[str, str], peer: str) -> Principal:
        """The identity behind these headers, which came from this address.

        Raises:
            Unauthorized: the peer is not listed, or names nobody, or more than one. Never anonymous.
        """
        if not self.trusts(peer):
            raise Unauthorized("requests reach this gateway through its proxy")
        subject, tenant = headers.get(self._subject, ""), headers.get(self._tenant, "")
        if not subject or "," in subject or "," in tenant:  # a header that came twice was joined by a comma
            raise Unauthorized("the proxy names no single user")
        return Principal("proxy", tenant, subject)

    def trusts(self, peer: str) -> bool:
        """True for a listed address."""
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)
