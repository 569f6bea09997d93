"""The tree of failures and its codes."""

import copy
import pickle

import pytest
from trunkline.mux import errors
from trunkline.mux.errors import (
    DirectoryUnavailable,
    Elsewhere,
    Everywhere,
    LeaseEnded,
    Overloaded,
    ServerError,
    SessionLost,
    TrunklineError,
    UpstreamRefused,
    WorkflowEnded,
)

CODES = {
    "ParseError": -32700,
    "InvalidRequest": -32600,
    "MethodNotFound": -32601,
    "InvalidParams": -32602,
    "UpstreamFault": -32603,
    "UpstreamUnreachable": -31001,
    "SessionLost": -31002,
    "Overloaded": -31003,
    "TimedOut": -31004,
    "Unattributable": -31005,
    "Cancelled": -32800,
}


def test_e17_codes_are_those_of_the_contract() -> None:
    assert {name: getattr(errors, name).code for name in CODES} == CODES


@pytest.mark.parametrize(
    "made",
    [
        SessionLost("gone", executed="unknown"),
        Overloaded("full", limit="max_waiting"),
        ServerError({"code": -7, "message": "no", "data": {"why": 1}}),
        WorkflowEnded("idle"),
        errors.UnknownServer("files"),
        errors.TimedOut("late"),
    ],
)
def test_a_failure_can_be_copied_and_sent_to_another_process(made: TrunklineError) -> None:
    for copied in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(copied) is type(made)
        assert (copied.args, vars(copied), repr(copied)) == (made.args, vars(made), repr(made))
        assert (copied.code, str(copied), copied.word) == (made.code, str(made), made.word)


def test_every_failure_has_a_reason_of_its_own() -> None:
    def tree(kind: type[TrunklineError]) -> list[type[TrunklineError]]:
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    kinds = [kind for kind in tree(TrunklineError) if kind.__module__ == errors.__name__ and not kind.__subclasses__()]
    reasons = [kind.reason for kind in kinds if kind.__name__ != "InvalidRequest"]
    assert len(set(reasons)) == len(reasons)


def test_failures_carry_their_data() -> None:
    assert SessionLost("m", executed="no").data == {"executed": "no"}
    assert Overloaded("m", limit="l").data == {"limit": "l"}
    assert WorkflowEnded("idle").cause == "idle"
    assert UpstreamRefused(b"{}").raw == b"{}"
    told = ServerError({"code": -32042, "message": "no", "data": [1]})
    assert (told.code, told.message, told.details, told.data) == (-32042, "no", [1], {})
    assert (ServerError({}).code, ServerError({}).message, ServerError({}).details) == (-32603, "", None)
    assert repr(TrunklineError("m", a=1)) == "TrunklineError('m')"


def test_a_refusal_is_counted_by_the_limit_that_was_met_else_by_its_kind() -> None:
    refused = (Overloaded("m", limit="l"), DirectoryUnavailable("m"), LeaseEnded(), SessionLost("m", executed="no"))
    assert [error.word for error in refused] == ["l", "directory", "lease", "session_lost"]


def test_a_directory_that_is_away_is_a_limit_and_another_worker_is_no_failure() -> None:
    assert DirectoryUnavailable("m").data == {"limit": "directory"}
    assert not isinstance(Elsewhere("w"), TrunklineError)
    assert (Elsewhere("w").worker, Elsewhere("w").identity) == ("w", None)


def test_what_is_refused_without_a_lease_did_not_run() -> None:
    assert LeaseEnded().data == {"limit": "lease", "executed": "no"}


def test_what_any_worker_may_know_names_none() -> None:
    assert Everywhere().worker == ""


def test_the_first_failure_of_a_group_is_found_however_deep_it_lies() -> None:
    first, other = SessionLost("first", executed="no"), SessionLost("other", executed="no")
    assert errors.first_of(ExceptionGroup("", [ExceptionGroup("", [first, other]), other])) is first
