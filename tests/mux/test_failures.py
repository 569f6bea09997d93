"""The last failure of each server."""

import pytest
from trunkline.mux.errors import (
    CredentialRefused,
    HandshakeTimedOut,
    SessionLost,
    TrunklineError,
    UpstreamFault,
    UpstreamRefused,
    UpstreamUnreachable,
)
from trunkline.mux.failures import Failure, Failures, Stage, stage_of

REFUSED = UpstreamUnreachable("connection refused", executed="no")


def test_a_failure_lasts_until_a_session_is_opened() -> None:
    failures = Failures()
    failures.note("x", "connect", REFUSED, 10.0)
    failures.note("x", "handshake", UpstreamFault("no answer"), 12.0)
    failures.note("y", "session", SessionLost("gone", executed="unknown"), 13.0)
    assert failures.last["x"] == Failure("handshake", "no answer", at=12.0, since=10.0)
    failures.clear("x")
    failures.clear("x")
    assert failures.last == {"y": Failure("session", "gone", 13.0, 13.0)}
    failures.keep(["x"])
    assert failures.last == {}


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (REFUSED, "connect"),
        (UpstreamUnreachable("HTTP 401", status=401, executed="no"), "handshake"),
        (UpstreamUnreachable("the answer broke off", executed="unknown"), "handshake"),
        (HandshakeTimedOut("no handshake within 30 s", executed="no"), "handshake"),
        (CredentialRefused("no token was issued"), "credential"),
        (UpstreamRefused(b"{}"), "handshake"),
        (UpstreamFault("no JSON"), "handshake"),
    ],
)
def test_it_is_told_how_far_an_opening_came(error: TrunklineError, stage: Stage) -> None:
    assert stage_of(error) == stage
