"""Messages and scripts (see `raw_script`) as text: what is given is never parsed or written anew."""

import json


def request(id: bytes, method: str, params: bytes = b"{}", *beside: bytes) -> bytes:
    """A request; `beside` are members of its own beside the known ones, as `"name":value`."""
    head = b'{"jsonrpc":"2.0","id":%s,"method":%s,"params":%s' % (id, json.dumps(method).encode(), params)
    return b",".join((head, *beside)) + b"}"


def notification(method: str, params: bytes = b"{}", *beside: bytes) -> bytes:
    """The same without an id."""
    head = b'{"jsonrpc":"2.0","method":%s,"params":%s' % (json.dumps(method).encode(), params)
    return b",".join((head, *beside)) + b"}"


def response(id: bytes, members: bytes) -> bytes:
    """A response with these members: `result` or `error`, and what else there is."""
    return b'{"jsonrpc":"2.0","id":%s,%s' % (id, members[1:])


def script(*steps: bytes, beside: bytes = b"") -> bytes:
    """Params that play these steps; `beside` are their other members, as `"name":value`."""
    return b'{%s"script":[%s]}' % (beside + b"," if beside else b"", b",".join(steps))


def play(id: bytes, *steps: bytes, method: str = "tools/call", beside: bytes = b"") -> bytes:
    """A request that plays these steps."""
    return request(id, method, script(*steps, beside=beside))


def say(message: bytes, *, unasked: bool = False, level: str = "", uri: str = "") -> bytes:
    """A step; see `raw_script` for each of them."""
    guards = b"".join(
        b',"%s":%s' % (name.encode(), json.dumps(value).encode())
        for name, value in (("unasked", unasked), ("level", level), ("uri", uri))
        if value
    )
    return b'{"say":%s%s}' % (message, guards)


def ask(message: bytes, *, unasked: bool = False) -> bytes:
    return b'{"ask":%s%s}' % (message, b',"unasked":true' if unasked else b"")


def reply(members: bytes = b'{"result":{}}') -> bytes:
    return b'{"reply":%s}' % members


def large(size: int) -> bytes:
    return b'{"large":%d}' % size


def wait_at(gate: str) -> bytes:
    return b'{"pass":"%s"}' % gate.encode()


def open_gate(gate: str) -> bytes:
    return b'{"open":"%s"}' % gate.encode()


def saw(kind: str, count: int = 1) -> bytes:
    return b'{"saw":"%s","count":%d}' % (kind.encode(), count)
