"""The SDK's everything-server behind the recorder. Run: `python -m harness.everything --fd LISTENING_SOCKET`.

The environment variable `TRUNKLINE_EVERYTHING_SERVER` names its folder in the SDK's source distribution.
"""

import argparse
import os
import sys

from harness.recorder import Recorder, serve


def build() -> Recorder:
    """The server as its own command line would run it, behind the recorder."""
    sys.path.append(os.environ["TRUNKLINE_EVERYTHING_SERVER"])
    from mcp_everything_server.server import event_store, mcp  # type: ignore[import-not-found]

    return Recorder(mcp.streamable_http_app(event_store=event_store, retry_interval=100))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    # The suite sends white space after a header's value, which h11 takes away and httptools leaves there.
    serve(build(), parser.parse_args().fd, http="h11")
