"""How the program ends: one line, and an exit code that says what kind of end it is."""

import socket
import ssl

import pytest
import typer
from trunkline.gateway.exits import MEANINGS, ExitCode, Failure, WrongArgument, tell
from trunkline.gateway.sessions import Unavailable
from trunkline.gateway.settings import NotStarted, SettingsError


def unknown_host() -> OSError:
    with pytest.raises(socket.gaierror) as caught:
        socket.getaddrinfo("-", None, flags=socket.AI_NUMERICHOST)
    return caught.value


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (Failure("a\nb"), "a b", 1),
        (Failure("a tool \x1b[2J\x9b1m\x07\u202e\ud800"), "a tool ?[2J?1m???", 1),
        (Unavailable("nobody answers"), "nobody answers", 1),
        (WrongArgument("not so"), "not so", 2),
        (SettingsError("gateway.port", "no"), "gateway.port: no", 2),
        (NotStarted("gateway.port", "taken"), "gateway.port: taken", 3),
        (ExceptionGroup("of tasks", [ExceptionGroup("of tasks", [Failure("inside")])]), "inside", 1),
        (OSError(28, "No space left on device"), "No space left on device; --debug shows what was tried", 1),
        (OSError(13, "x", "/etc/x"), "Permission denied: /etc/x; --debug shows what was tried", 1),
        (unknown_host(), "Name or service not known; --debug shows what was tried", 1),
        (ssl.SSLError(1, "[SSL] no good"), "[SSL] no good; --debug shows what was tried", 1),
        (ssl.SSLCertVerificationError(1, "not so"), "not so; --debug shows what was tried", 1),
        (typer.BadParameter("Is none."), "invalid value: Is none; see `trunkline --help`", 2),
    ],
)
def test_each_failure_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, line: str, code: int
) -> None:
    assert tell(error) == code
    assert capsys.readouterr() == ("", f"trunkline: {line}\n")


def test_what_was_not_expected_is_told_by_its_kind_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(ValueError("s3cret")) == 70
    told = capsys.readouterr().err
    assert told == "trunkline: unexpected ValueError: run it again with --debug, and report what it shows\n"


def test_where_it_came_from_is_told_to_who_debugs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_DEBUG", "1")

    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise Failure("second") from None

    with pytest.raises(Failure) as caught:
        fail()
    assert tell(caught.value) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "KeyError: 'first'" in told
    assert told.endswith("\ntrunkline: second\n")


def test_every_exit_code_has_its_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode)
