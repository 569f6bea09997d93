"""For the path of a gateway whose memory is measured: at SIGUSR2 it collects its garbage and gives free pages back.

What is left is what it keeps. It writes an empty file beside its database, named `settled`, when it has.
"""

import ctypes
import gc
import signal
from pathlib import Path


def _settle(number: int, frame: object) -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("settled").touch()


signal.signal(signal.SIGUSR2, _settle)
