"""HTTP for clients without a task, by a call and answered by callbacks: what asks of a workflow at hand, or of none.

Whatever has to be waited for, and whatever is to be refused but for the want of an identity, is left to the endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..mux import envelope as wire_format
from ..mux.burden import LARGE_BYTES
from ..mux.envelope import Envelope
from ..mux.errors import TrunklineError
from ..mux.event_log import Stream
from ..mux.exchange import Exchange, Outcome
from ..mux.limits import MAX_BODY_BYTES
from ..mux.modern import REVISIONS
from ..mux.placement import WHOLE, Concern, concern_of
from ..mux.routing import LEGACY, PRIMING
from ..mux.workflow import Workflow
from .asgi import JSON, RequestHeaders, WholeRequest
from .endpoint import EndpointConfig, Sessionless, is_opening
from .headers import PROTOCOL_VERSION, SESSION_ID, WORKFLOW
from .http_endpoint import HTTPRequest, check_json, refusal, refuse
from .link import Link
from .media import JSON_TYPE, STREAM_TYPE, accepts
from .patience import Patience, Waiting
from .sse import ACCEPTED, PLAIN, named_by
from .status import HTTPRefusal, Unauthorized
from .streamable_request import (
    arrival_of,
    check_agreement,
    check_names,
    give_events,
    greet,
    is_good_bye,
    key_of,
    take,
    undecided,
)


class AtOnce:
    """Takes whole requests to one server's `/mcp`, of workflows that are at hand."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._pool = config.pool
        self._patience = undecided()
        self._modern = None if config.modern is None else ModernAtOnce(config, config.modern)
        self._seals = {"POST": object(), "DELETE": object()}
        """Of headers that may come with such a request; none of them leads to what this is made of."""

    def take(self, whole: WholeRequest) -> bool:
        """Take a request that asks nobody else, and waits for nothing but the server's answer.

        False where it is none, or is to be refused, or another worker is to take it since this one drains: nothing was
        done then, and the endpoint is to be asked.
        """
        headers, config, method = whole.headers, self._config, whole.scope["method"]
        seal = self._seals.get(method)
        if seal is None or headers.query or self._pool.draining:
            return False
        if headers.checks.seal is not seal and not self._may_come(headers, method, seal):
            return method == "POST" and self._modern is not None and self._modern.take(whole)
        request = HTTPRequest(headers, whole.receive, whole.send, whole.scope)
        try:
            request.principal = config.authenticate(headers)
            return self._take_message(whole, request) if method == "POST" else self._good_bye(whole, request)
        except Unauthorized as error:
            _refuse(self._config, whole, request, error)
            return True
        except TrunklineError:
            return False

    def _may_come(self, headers: RequestHeaders, method: str, seal: object) -> bool:
        """Whether the headers are those of a request of the revisions with sessions, from who may speak here at all."""
        revision = headers.get(PROTOCOL_VERSION)
        return (revision is None or revision in LEGACY) and may_come(self._config, headers, method, seal)

    # POST

    def _take_message(self, whole: WholeRequest, request: HTTPRequest) -> bool:
        message = wire_format.parse(whole.body, limit=MAX_BODY_BYTES)
        workflow = self._workflow(request, message)
        if workflow is None:
            return False
        admission = self._config.admission
        if admission.pass_at_once():
            self._answer(whole, request, workflow, message)
        elif message.size > LARGE_BYTES:
            return False  # there it counts as a large one, while it waits
        else:
            go_on = partial(self._turn_came, whole, request, message)
            admission.queue(request.principal, go_on)
            whole.left = partial(admission.withdraw, request.principal, go_on)
        return True

    def _turn_came(self, whole: WholeRequest, request: HTTPRequest, message: Envelope) -> None:
        """It waited for its turn: meanwhile much may have changed."""
        whole.left = None
        if self._pool.draining:
            whole.decline()
            return
        try:
            workflow = self._workflow(request, message)
        except Exception as error:
            _refuse(self._config, whole, request, error)
            return
        if workflow is None:
            whole.decline()
        else:
            self._answer(whole, request, workflow, message)

    def _workflow(self, request: HTTPRequest, message: Envelope) -> Workflow | None:
        """The workflow of a message, where this worker has it and nobody else needs to be asked.

        Raises:
            TrunklineError: the headers disagree with it, or the message is no such message.
        """
        if message.method == "initialize":
            return self._returning(request, message)
        if message.method == "notifications/cancelled" and self._pool.number > 0:  # other workers may have the call
            return None
        return self._named(request, concern_of([message]))

    def _returning(self, request: HTTPRequest, message: Envelope) -> Workflow | None:
        """The workflow that an `initialize` comes back to. Raises as `_workflow`."""
        if not is_opening(message):
            return None
        arrival = arrival_of(self._config, request)
        workflow = self._pool.resumable(request.principal, self._config.server, message, arrival)
        if workflow is not None:
            check_names(request.headers, workflow)
        return workflow

    def _named(self, request: HTTPRequest, concern: Concern) -> Workflow | None:
        """The workflow that the headers name.

        Raises:
            HTTPRefusal: they disagree with it.
        """
        headers, config, key = request.headers, self._config, None
        session_id = headers.get(SESSION_ID)
        if session_id is None:
            if config.modern is not None and PROTOCOL_VERSION not in headers:  # perhaps it is of 2026-07-28
                return None
            key = key_of(config, request)
        workflow = self._pool.lookup.at_hand(request.principal, config.server, session_id, key, concern)
        if workflow is None or not workflow.opened.done():
            return None
        agreed = workflow.record.session_id, workflow.record.revision
        if headers.checks.agreed != agreed:
            check_agreement(headers, workflow)
            headers.checks.agreed = agreed
        return workflow

    def _answer(self, whole: WholeRequest, request: HTTPRequest, workflow: Workflow, message: Envelope) -> None:
        request.id = message.id
        try:
            if message.method == "initialize":
                begun = self._pool.resume(workflow, by_key=SESSION_ID not in request.headers)
                body = greet(request, message, begun)
                whole.reply(200, request.head([JSON]), body)
                return
            request.name(workflow, "resumed" if WORKFLOW in request.headers else None)
            exchange = take(self._config, request, workflow, [message])
        except Exception as error:
            _refuse(self._config, whole, request, error)
            return
        if exchange is None:
            whole.reply(202, request.head([]), b"")
        else:
            _Answering(self._config, whole, request, workflow, exchange).begin(self._patience)

    # DELETE

    def _good_bye(self, whole: WholeRequest, request: HTTPRequest) -> bool:
        """Answer who leaves its workflow to come back to it."""
        headers = request.headers
        workflow = self._named(request, WHOLE)
        if workflow is None or not is_good_bye(headers, workflow):
            return False
        request.name(workflow, "resumed" if WORKFLOW in headers else None)
        whole.reply(200, request.head([]), b"")
        return True


class ModernAtOnce:
    """Takes whole requests of 2026-07-28 to one server's `/mcp`."""

    def __init__(self, config: EndpointConfig, requests: Sessionless) -> None:
        self._config = config
        self._requests = requests
        self._seal = object()

    def take(self, whole: WholeRequest) -> bool:
        """See `AtOnce.take`."""
        headers, config = whole.headers, self._config
        if headers.query or config.pool.draining or whole.scope["method"] != "POST":
            return False
        if headers.checks.seal is not self._seal:
            is_modern = headers.get(PROTOCOL_VERSION) in REVISIONS
            if not is_modern or not may_come(config, headers, "POST", self._seal):
                return False
        request = HTTPRequest(headers, whole.receive, whole.send, whole.scope)
        try:
            request.principal = config.authenticate(headers)
            return self._requests.take(whole, request, config.admission.pass_at_once)
        except TrunklineError as error:
            if not isinstance(error, Unauthorized):
                return False
            _refuse(config, whole, request, error)
        except Exception as error:
            _refuse(config, whole, request, error)
        return True


class MessagesAtOnce:
    """Takes whole messages of HTTP+SSE to one server's `/message`, whose stream is at hand."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._links = config.connections.links
        self._seal = object()

    def take(self, whole: WholeRequest) -> bool:
        """See `AtOnce.take`."""
        headers, config = whole.headers, self._config
        if config.pool.draining or whole.scope["method"] != "POST" or len(whole.body) > LARGE_BYTES:
            return False
        if headers.checks.seal is not self._seal and not self._may_come(headers):
            return False
        request = HTTPRequest(headers, whole.receive, whole.send, whole.scope)
        try:
            request.principal = config.authenticate(headers)
            link = self._link(request)
        except Unauthorized as error:
            _refuse(config, whole, request, error)
            return True
        except TrunklineError:
            return False
        if link is None or not link.take_at_once(whole.body, headers):
            return False
        whole.reply(202, request.head(PLAIN), ACCEPTED)
        return True

    def _may_come(self, headers: RequestHeaders) -> bool:
        """Whether the headers are those of a message of a session, from who may speak here at all."""
        try:
            headers.checks.named = named_by(headers)
        except HTTPRefusal:
            return False
        return may_come(self._config, headers, "POST", self._seal, answers=())

    def _link(self, request: HTTPRequest) -> Link | None:
        """The connection that it names, where that is here, and its own.

        Raises:
            HTTPRefusal: it names the key of another workflow.
        """
        named = request.headers.checks.named
        link = None if named is None else self._links.get(named.session_id, {}).get(named.stream)
        if named is None or link is None or link.principal != request.principal:
            return None
        link.check_agreement(named.asked)
        return link


def may_come(
    config: EndpointConfig,
    headers: RequestHeaders,
    method: str,
    seal: object,
    *,
    answers: Sequence[str] = (JSON_TYPE, STREAM_TYPE),
) -> bool:
    """Whether the headers are those of such a request, from who may speak here at all: then they get this seal.

    Of a POST, its client has to take each of these types of `answers`.
    """
    try:
        config.guard.check(headers)
        config.guard.check_page(headers)
        if method == "POST":
            check_json(headers)
    except HTTPRefusal:
        return False
    if method == "POST" and not accepts(headers, *answers):
        return False
    headers.checks.seal, headers.checks.cors = seal, config.guard.cors(headers)
    return True


class _Answering:
    """A call whose answer goes out by callbacks, without a task; a stream gets one once it is decided for."""

    __slots__ = ("_config", "_exchange", "_request", "_timer", "_whole", "_workflow")

    def __init__(
        self,
        config: EndpointConfig,
        whole: WholeRequest,
        request: HTTPRequest,
        workflow: Workflow,
        exchange: Exchange,
    ) -> None:
        self._config = config
        self._whole = whole
        self._request = request
        self._workflow = workflow
        self._exchange = exchange
        self._timer: Waiting | None = None

    def begin(self, patience: Patience) -> None:
        """Answer once the form of the answer is decided, which takes no longer than this."""
        self._workflow.wire_came()
        if not self._exchange.is_decided:
            if self._workflow.revision >= PRIMING:
                self._timer = patience.begin(self._workflow.loop, self._exchange.decide_for_stream)
            else:
                self._whole.left = self._left
        self._exchange.when_decided(self._decided)

    def _left(self) -> None:
        """The client has gone, and cannot resume."""
        self._exchange.cut = True
        self._workflow.note("cut")

    def _decided(self, outcome: Outcome) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._whole.left = None
        if isinstance(outcome, Stream):
            self._whole.go_on(self._give(outcome))
            return
        try:
            self._workflow.wire_left()
            self._whole.reply(200, self._request.head([JSON]), outcome[0])
        except Exception as error:
            _refuse(self._config, self._whole, self._request, error)

    async def _give(self, stream: Stream) -> None:
        """Send an answer that comes in parts."""
        try:
            await give_events(self._config, self._request, self._workflow.streams.attach(stream, 0))
        except Exception as error:
            await refuse(self._config, self._request, error)
        finally:
            self._workflow.wire_left()


def _refuse(config: EndpointConfig, whole: WholeRequest, request: HTTPRequest, error: Exception) -> None:
    """Say what went wrong."""
    answer = refusal(config, request, error)
    whole.reply(answer.status, request.head(answer.headers), answer.body)
