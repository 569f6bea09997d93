"""What a gateway loads when it starts: nothing that only few need, since it would take a third of its memory."""

import subprocess
import sys

FOR_FEW = {
    "aiohttp": "servers behind a proxy, and keys at a URL",
    "cryptography": "JSON Web Tokens",
    "jwt": "JSON Web Tokens",
    "mcp": "the demo, clients, and credentials from an issuer",
    "redis": "a directory in redis",
    "sqlalchemy": "a directory in a database",
}
"""Packages without which a gateway starts, and what needs them."""


def test_what_few_need_is_loaded_for_them_alone() -> None:
    program = "import sys, trunkline.gateway.process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert FOR_FEW.keys() & set(done.stdout.split()) == set()
