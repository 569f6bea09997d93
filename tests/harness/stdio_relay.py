"""A stdio server without a mind: hands on what it reads to a socket, and does what it is told there.

Run: `python -I -S stdio_relay.py SOCKET`. A command is one line, a word and a JSON string: `out` prints the text (byte
by byte, as latin-1), `err` prints it on stderr, `exit` exits with status 3, `stall` ignores its end from then on. It
exits when its input ends.
"""

import json
import os
import signal
import socket
import sys
import threading

HERE = socket.socket(socket.AF_UNIX)
STALLED = threading.Event()


def hand_on() -> None:
    while data := os.read(0, 65536):
        HERE.sendall(data)
    while STALLED.is_set():
        signal.pause()
    os._exit(0)


def obey() -> None:
    for line in HERE.makefile("rb"):
        word, _, text = line.partition(b'"')
        data = json.loads(b'"' + text).encode("latin-1")
        if word == b"exit":
            os._exit(3)
        elif word == b"stall":
            STALLED.set()
        while data:
            data = data[os.write(2 if word == b"err" else 1, data) :]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None if STALLED.is_set() else os._exit(0))
    HERE.connect(sys.argv[1])
    threading.Thread(target=obey, daemon=True).start()
    hand_on()
