"""Whoever operates a gateway: writes its settings, and tells it to read them again."""

import os
import signal
from pathlib import Path

from harness.gateways import Gateway, token_settings, until
from harness.upstreams import Upstream


class Operator:
    """Whoever writes the settings file of a gateway, and tells it so."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self.gateway = gateway
        self.path = path

    async def reload(self, text: str, outcome: str = "applied") -> None:
        """Have the gateway read this, and wait until it has come to this outcome."""
        before = self.gateway.metric("trunkline_reloads_total", outcome=outcome)
        self.path.write_text(text)
        self.gateway.process.send_signal(signal.SIGHUP)
        await until(lambda: self.gateway.metric("trunkline_reloads_total", outcome=outcome) == before + 1)

    def logged(self, text: str) -> int:
        """How often this stands in the gateway's log."""
        return self.gateway.process.log().count(text)

    def descriptors(self) -> int:
        """What the gateway's process has open."""
        return len(os.listdir(f"/proc/{self.gateway.process.pid}/fd"))


def both(upstream: Upstream, own: str = "", more: str = "") -> str:
    """Settings with `own` keys of the server `up`, and more sections."""
    text = token_settings(other=upstream.url, up=upstream.url)
    return f"{text}\n{own}\n{more}\n"
