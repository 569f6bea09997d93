"""Bytes to envelopes and back: what clients speak to a gateway, and in `upstream` what it speaks to servers."""

from .endpoint import EndpointConfig
from .guard import Guard, Unauthorized
from .streamable_http import StreamableHTTPEndpoint
from .upstream.streamable_http import StreamableHTTPConnector

__all__ = ["EndpointConfig", "Guard", "StreamableHTTPConnector", "StreamableHTTPEndpoint", "Unauthorized"]
