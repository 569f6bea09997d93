"""Bytes to envelopes and back: what clients speak to a gateway, and in `upstream` what it speaks to servers.

For a program of one's own: `Host` serves MCP in an ASGI application, `Servers` keeps sessions with MCP servers.
"""

from .base import Transport
from .endpoint import EndpointConfig
from .guard import Guard
from .host import Host, SSETransport, StreamableHTTPTransport, WebSocketTransport
from .servers import Server, Servers
from .sse import SSEEndpoint
from .status import Unauthorized
from .streamable_http import StreamableHTTPEndpoint
from .upstream.streamable_http import StreamableHTTPConnector
from .websocket import WebSocketEndpoint

__all__ = [
    "EndpointConfig",
    "Guard",
    "Host",
    "SSEEndpoint",
    "SSETransport",
    "Server",
    "Servers",
    "StreamableHTTPConnector",
    "StreamableHTTPEndpoint",
    "StreamableHTTPTransport",
    "Transport",
    "Unauthorized",
    "WebSocketEndpoint",
    "WebSocketTransport",
]
