"""What a demultiplexer is given in tests: messages, and who waits for their answers."""

from trunkline.mux.demux import Asked, Demux
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.request import Request, ServerRequest


class Waiting:
    """A caller that only has a name: the demultiplexer never calls it."""

    def __init__(self, name: str = "caller", *, is_own: bool = False) -> None:
        self.name = name
        self.owner = self
        self.is_own = is_own

    def answered(self, message: bytes, *, is_error: bool) -> None:
        raise AssertionError

    progressed = failed = answered  # type: ignore[assignment]


def read(text: str | bytes) -> Envelope:
    return parse(text if isinstance(text, bytes) else text.encode(), limit=1 << 20)


def call(id: str = "1", params: str = "{}") -> Envelope:
    return read(f'{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}')


def answer(id: str, result: str = "{}") -> Envelope:
    return read(f'{{"jsonrpc":"2.0","id":{id},"result":{result}}}')


def notification(method: str, params: str = "{}") -> Envelope:
    return read(f'{{"jsonrpc":"2.0","method":"{method}","params":{params}}}')


def asks(id: str = '"s1"', method: str = "elicitation/create") -> Envelope:
    return read(f'{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{}}}}')


def opened(demux: Demux, message: Envelope | None = None, now: float = 0.0) -> Request:
    return demux.open(message or call(), Waiting(), now)[0]  # type: ignore[arg-type]


def asked(demux: Demux, message: Envelope, origin: Request | None = None, now: float = 0.0) -> ServerRequest:
    event = demux.receive(message, origin, now)
    assert isinstance(event, Asked)
    return event.request
