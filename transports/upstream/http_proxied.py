"""HTTP to servers that are reached through a proxy: with aiohttp."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from yarl import URL

from ..media import JSON_TYPE, STREAM_TYPE, content_type
from ..portions import PORTION_BYTES, end_of_events
from .http import (
    CONNECT_SECONDS,
    ENCODED,
    KEEP_ALIVE_SECONDS,
    MAX_HEAD_BYTES,
    NO_PROXIED,
    Answer,
    ExchangeBroken,
    Fence,
    HeaderBlock,
    Headers,
    Method,
    Withheld,
    words_of,
)

logger = logging.getLogger(__name__)


class ProxiedClient:
    """Implements `HTTPClient` for one URL behind a proxy."""

    def __init__(self, url: str, context: ssl.SSLContext, proxy: str) -> None:
        self._url = URL(url, encoded=True).with_user(None)  # which stands in a header, as without a proxy
        self._origin = str(self._url.origin())
        self._context = context
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self,
        method: Method,
        headers: HeaderBlock,
        body: bytes,
        answer: Answer,
        *,
        target: str | None = None,
        fence: Fence | None = None,
    ) -> Callable[[], None]:
        """See `HTTPClient.send`."""
        heard = _Heard(answer, fence)
        url = self._url if target is None else URL(self._origin + target, encoded=True)
        task = asyncio.get_running_loop().create_task(self._carry(method, url, headers, body, heard))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cut() -> None:
            heard.answer = None
            task.cancel()

        return cut

    async def close(self) -> None:
        """See `HTTPClient.close`."""
        if self._session is not None:
            await self._session.close()

    async def _carry(self, method: Method, url: URL, headers: HeaderBlock, body: bytes, heard: "_Heard") -> None:
        """One exchange, told as it comes."""
        sent = {**headers.headers, "Content-Type": JSON_TYPE} if method == "POST" else headers.headers
        data = body if method == "POST" else None
        try:
            if not self._proxy.lower().startswith(("http://", "https://")):  # aiohttp would speak HTTP to it
                raise ExchangeBroken(NO_PROXIED, sent=False)
            async with self._http().request(
                method,
                url,
                data=data,
                headers=sent,
                proxy=self._proxy,
                allow_redirects=False,
                trace_request_ctx=heard,
            ) as response:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise ExchangeBroken(ENCODED, sent=True)
                told = {name.lower(): value for name, value in response.headers.items()}
                heard.began(response.status, told)
                is_stream = content_type(told) == STREAM_TYPE
                while chunk := await response.content.read(PORTION_BYTES):
                    at = 0
                    while at < len(chunk):
                        stop = end_of_events(chunk, at, len(chunk)) if is_stream else len(chunk)
                        heard.came(chunk[at:stop])
                        at = stop
                        if at < len(chunk) or at == PORTION_BYTES:
                            await asyncio.sleep(0)  # what has come already is read without one
        except ExchangeBroken as error:
            heard.ended(error)
        except (aiohttp.ClientError, OSError) as error:
            words = type(error).__name__ if heard.has_connection else self._words_of(error)
            heard.ended(ExchangeBroken(words, sent=heard.has_connection))
        except Exception as error:  # no thread that asks for the host: whatever it is, who waits must hear of it
            logger.error("an exchange through the proxy failed", exc_info=error)
            heard.ended(ExchangeBroken(type(error).__name__, sent=heard.has_connection))
        else:
            heard.ended(None)

    def _words_of(self, error: aiohttp.ClientError | OSError) -> str:
        """Why there is no connection; the certificate may be that of a proxy as well."""
        is_of_server = isinstance(error, aiohttp.ClientConnectorCertificateError) and error.host == self._url.host
        why = getattr(error, "certificate_error", None) if is_of_server else None
        return words_of(why) if isinstance(why, OSError) else NO_PROXIED

    def _http(self) -> aiohttp.ClientSession:
        """Made when it is first needed, inside the running loop."""
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_create_end.append(_check)
            tracing.on_connection_reuseconn.append(_check)
            self._session = aiohttp.ClientSession(
                trace_configs=[tracing],
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=self._context),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,  # 64 KiB may become 64 MiB, of which all is made before anybody is asked
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                max_line_size=MAX_HEAD_BYTES,
                max_field_size=MAX_HEAD_BYTES,
            )
        return self._session


async def _check(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
    """There is a connection: the request may go out on it, or not any longer."""
    heard = context.trace_request_ctx
    heard.has_connection = True
    if heard.fence is not None and not heard.fence():
        raise Withheld


class _Heard:
    """Who hears an answer, until the exchange is cut; and whether its request may be sent."""

    def __init__(self, answer: Answer, fence: Fence | None) -> None:
        self.answer: Answer | None = answer
        self.fence = fence
        self.has_connection = False
        """True once its request may have gone out."""

    def began(self, status: int, headers: Headers) -> None:
        if self.answer is not None:
            self.answer.began(status, headers)

    def came(self, chunk: bytes) -> None:
        if self.answer is not None:
            self.answer.came(chunk)

    def ended(self, error: ExchangeBroken | None) -> None:
        if self.answer is not None:
            self.answer.ended(error)
