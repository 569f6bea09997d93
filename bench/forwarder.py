"""What any gateway costs at least: bare uvicorn, and a bare forwarder on the gateway's own HTTP client.

Run: `python -m bench.forwarder --port 9302 --url http://127.0.0.1:9301/mcp`: a POST goes to that server as it came,
and its answer comes back as a whole. It knows nothing of MCP. `--floor` answers at once, and asks nobody.
"""

import argparse
import asyncio
from typing import Any

import uvicorn
from trunkline.gateway.heap import keep_what_large_messages_took
from trunkline.transports.upstream.http import ExchangeBroken, HeaderBlock, Headers, HTTPClient
from trunkline.transports.upstream.http_client import http_client

PASSED_ON = frozenset(
    {b"accept", b"authorization", b"mcp-method", b"mcp-name", b"mcp-protocol-version", b"mcp-session-id"}
)
"""Headers of a request that its copy has; the client says itself what the body is."""

RETURNED = ("content-type", "mcp-session-id")


class Forwarder:
    """An ASGI application that forwards each POST to one server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: HTTPClient | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward one request."""
        if scope["type"] != "http":
            return
        if scope["method"] != "POST":
            await respond(send, 200, b"ready", [])
            return
        if self._client is None:
            self._client = http_client(self._url)
        body = await whole_body(receive)
        answer = WholeAnswer()
        cut = self._client.send("POST", Forwarded(scope["headers"]), body, answer, target=scope["path"])
        try:
            await answer.complete
        except ExchangeBroken as error:
            await respond(send, 502, str(error).encode(), [])
        except asyncio.CancelledError:
            cut()
            raise
        else:
            headers = [(name.encode(), answer.headers[name].encode()) for name in RETURNED if name in answer.headers]
            await respond(send, answer.status, b"".join(answer.chunks), headers)


class Forwarded(HeaderBlock):
    """The headers of a request that came in by HTTP: they are encoded already, and were checked by its parser."""

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        lines = [b"%b: %b\r\n" % (name, value) for name, value in headers if name in PASSED_ON]
        self._encoded = b"".join(lines)


class WholeAnswer:
    """Implements `Answer`: keeps what comes until it is complete."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.chunks: list[bytes] = []
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self.status, self.headers = status, headers

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`."""
        self.chunks.append(chunk)

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        if self.complete.done():
            return
        if error is None:
            self.complete.set_result(None)
        else:
            self.complete.set_exception(error)


async def floor(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers at once with what it was asked."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])  # by which servers know that there is no lifespan
    headers = [(b"content-type", b"application/json"), (b"mcp-session-id", b"floor")]
    await respond(send, 200, await whole_body(receive), headers)


async def whole_body(receive: Any) -> bytes:
    """The body of a request."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def respond(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a whole answer."""
    head = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve on loopback until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--url", help="the server's")
    parser.add_argument("--floor", action="store_true", help="answer at once")
    given = parser.parse_args()
    if bool(given.url) == given.floor:
        parser.error("either --url or --floor")
    keep_what_large_messages_took()
    uvicorn.run(
        floor if given.floor else Forwarder(given.url),
        port=given.port,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
