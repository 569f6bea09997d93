"""The lean client of HTTP/1.1, in front of a raw server."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trunkline.transports.upstream.http import HeaderBlock
from trunkline.transports.upstream.http1 import HTTP1Client

from .raw_http import Hearer, RawServer, Serve, serving

NONE = HeaderBlock({})
CONTEXT = ssl.create_default_context()
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


@asynccontextmanager
async def client_of(serve: Serve) -> AsyncIterator[tuple[HTTP1Client, RawServer]]:
    """A client of such a server, for the length of the context."""
    async with serving(serve) as server:
        client = HTTP1Client(server.url, CONTEXT)
        try:
            yield client, server
        finally:
            await client.close()


def post(client: HTTP1Client, body: bytes = b"{}", headers: HeaderBlock = NONE) -> Hearer:
    """Send a request; who hears its answer."""
    hearer = Hearer()
    client.send("POST", headers, body, hearer)
    return hearer
