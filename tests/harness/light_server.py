"""A server on standard input and output that keeps what comes in, as the raw one does, and starts much faster.

Run: `python -I -S light_server.py FOLDER`. It answers the handshake, and each other request with `{"echo": MESSAGE}`.
For tests that lose many sessions at once: what they measure is not to be the start of dozens of interpreters.
"""

import json
import os
import sys


def main() -> None:
    """One session, until the input ends."""
    file = -1
    for line in sys.stdin.buffer:
        text = line.rstrip(b"\n").decode()
        message = json.loads(text)
        if message.get("method") == "initialize":
            name = message["params"]["clientInfo"]["name"]
            file = os.open(os.path.join(sys.argv[1], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, json.dumps(text).encode() + b"\n")  # before it has an effect
        if "id" in message and "method" in message:
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": result(message)}
            os.write(1, json.dumps(answer).encode() + b"\n")


def result(message: dict[str, object]) -> object:
    """What a request is answered with."""
    params = message.get("params")
    if message["method"] != "initialize" or not isinstance(params, dict):
        return {"echo": message}
    server = {"name": "light", "version": "1"}
    return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}


if __name__ == "__main__":
    main()
