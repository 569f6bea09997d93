"""The standard streams of the program, also where whoever started it has closed them, as some that start daemons do."""

import os
import sys
from typing import Final

NAMES: Final = ("stdin", "stdout", "stderr")
"""By their descriptors."""


def open_standard_streams() -> None:
    """Open those that are closed on nothing. Sockets would get their numbers, and libuv closes none of these."""
    for number, name in enumerate(NAMES):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115 - it is there as long as the program
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
