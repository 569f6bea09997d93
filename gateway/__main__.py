"""The program from its first line on: signals to `serve` wait while what takes long is imported, Ctrl-C ends it."""

import os
import signal
import sys


def main() -> None:
    """See `cli.main`. Who pressed Ctrl-C waits for nothing, and is told nothing."""
    sys.unraisablehook = _heed
    try:
        if next((word for word in sys.argv[1:] if not word.startswith("-")), "") == "serve":
            from .signals import HELD

            signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        _leave()


def _heed(raised: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C may come where nobody can catch it: while something is freed, or at the very end."""
    if issubclass(raised.exc_type, KeyboardInterrupt):
        _leave()
    sys.__unraisablehook__(raised)


def _leave() -> None:
    """End as `ExitCode.INTERRUPTED` says, which may not be here yet, or not any longer."""
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
