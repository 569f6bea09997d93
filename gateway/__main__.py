"""The program from its first line on: signals to `serve` wait while what takes long is imported."""

import signal
import sys

from .signals import HELD


def main() -> None:
    """See `cli.main`."""
    if next((word for word in sys.argv[1:] if not word.startswith("-")), "") == "serve":
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
