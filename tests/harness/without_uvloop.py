"""The gateway's program where uvloop is not installed. Run: `python -m harness.without_uvloop serve …`."""

import sys

from trunkline.gateway.cli import main

if __name__ == "__main__":
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # importing it fails
    main()
