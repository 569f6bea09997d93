"""A program of its own, which ends the process groups that a killed process leaves behind; `guardian` runs it.

Its input tells which there are: `+` and a number for one that has begun, `-` for one that has ended, a line each. Where
that ends, whoever told it has died. It imports nothing of the package, so that it takes little.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

POLL_SECONDS = 0.02
"""How often it is looked whether they have gone."""


def heard(lines: Iterable[bytes]) -> set[int]:
    """The groups that are left at the end of these lines; one that is cut says nothing."""
    groups = set[int]()
    for line in lines:
        if line.endswith(b"\n"):
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    return groups


def end(groups: set[int], seconds: float) -> None:
    """They had their input closed: give them so long, then SIGTERM and as long again, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + seconds
        while (groups := {group for group in groups if is_there(group)}) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        for group in groups:
            tell(group, number)


def is_there(group: int) -> bool:
    """Whether a process is left of it."""
    return tell(group, 0)


def tell(group: int, number: int) -> bool:
    """Send it a signal; False where there is nobody."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs as another user
        pass
    return True


def main() -> None:
    """Run until the input has ended, and what it told of."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # they are meant for others, whom it outlives
        signal.signal(number, signal.SIG_IGN)
    end(heard(sys.stdin.buffer), float(sys.argv[1]))


if __name__ == "__main__":
    main()
