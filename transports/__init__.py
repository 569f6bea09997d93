"""Bytes to envelopes and back: what clients speak to a gateway, and in `upstream` what it speaks to servers."""

from .base import Transport
from .endpoint import EndpointConfig
from .guard import Guard, Unauthorized
from .host import Host, SSETransport, StreamableHTTPTransport, WebSocketTransport
from .sse import SSEEndpoint
from .streamable_http import StreamableHTTPEndpoint
from .upstream.streamable_http import StreamableHTTPConnector
from .websocket import WebSocketEndpoint

__all__ = [
    "EndpointConfig",
    "Guard",
    "Host",
    "SSEEndpoint",
    "SSETransport",
    "StreamableHTTPConnector",
    "StreamableHTTPEndpoint",
    "StreamableHTTPTransport",
    "Transport",
    "Unauthorized",
    "WebSocketEndpoint",
    "WebSocketTransport",
]
