"""Start ContextForge with trunkline inside: `python -m trunkline.compat.contextforge -- --port 4444`.

The arguments are uvicorn's; the application is ContextForge's own.
"""

import sys

from .launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
