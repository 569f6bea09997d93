"""How the program ends: its exit codes, and a failure told in one line. The one place that knows both."""

import os
import sys
import traceback
from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Final

DEBUG: Final = "TRUNKLINE_DEBUG"
"""The variable of the environment that is as good as `--debug`."""


class ExitCode(IntEnum):
    """What the shell, a service manager or a script is told."""

    DONE = 0
    FAULT = 1
    WRONG = 2
    NOT_STARTED = 3
    UNEXPECTED = 70
    """As `EX_SOFTWARE` of sysexits.h."""
    INTERRUPTED = 130
    """As shells tell SIGINT."""


MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.DONE: "done, or drained and stopped",
    ExitCode.FAULT: "a fault was found: a server is down, a call has failed, nobody answers",
    ExitCode.WRONG: "a wrong argument or setting; the same again fails again",
    ExitCode.NOT_STARTED: "the gateway cannot start now: its port is taken, its directory is away",
    ExitCode.UNEXPECTED: "a fault of trunkline itself; --debug shows where",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}


class Failure(Exception):
    """A command cannot do what it was asked for; the message is one line for people, which says what to do."""

    exit: ClassVar[ExitCode] = ExitCode.FAULT


class WrongArgument(Failure):
    """An argument of the command that cannot be used."""

    exit = ExitCode.WRONG


def tell(error: BaseException) -> ExitCode:
    """Say on standard error what ended the program, in one line; with `--debug`, after where it came from."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if os.environ.get(DEBUG):
        error.__suppress_context__ = False
        traceback.print_exception(error)
    line, code = _words(error)
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(line.split()))  # some of it may be a server's word
    sys.stderr.write(f"trunkline: {shown}\n")
    return code


def of_tls(error: BaseException | None) -> str:
    """What is wrong with TLS, and what to do, where that is what this error came from; else empty."""
    import ssl

    from ..transports.upstream.http import UNKNOWN_ISSUER

    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message.rstrip(".")
            if error.verify_code in UNKNOWN_ISSUER:
                return f"its certificate is not trusted here ({why}): SSL_CERT_FILE names others to trust"
            return f"its certificate does not verify: {why}"
        if isinstance(error, ssl.SSLError):
            return "no TLS is spoken there that is understood here: does its URL begin with http, or ws?"
        reason = getattr(error, "reason", None)  # urllib's
        error = reason if isinstance(reason, OSError) else error.__cause__ or error.__context__
    return ""


def nobody_at(url: str) -> str:
    """That nobody answers at a URL, which is shown; or through the proxy that leads there."""
    from ..transports.upstream.proxy import proxy_of

    scheme, colon, rest = url.partition(":")
    if proxy_of(f"{scheme.replace('ws', 'http')}{colon}{rest}") is None:
        return f"nobody answers at {url}: is the gateway running there? `trunkline serve` starts one"
    return (
        f"nobody answers at {url}, which is reached through the proxy that HTTP_PROXY or HTTPS_PROXY names: name its "
        "host in NO_PROXY if it needs none"
    )


def _words(error: BaseException) -> tuple[str, ExitCode]:
    if isinstance(error, Failure):
        return str(error), error.exit
    # Typer's own, which have been classes of click in some of its versions, and of typer in others.
    if callable(format_message := getattr(error, "format_message", None)):
        return _usage(error, str(format_message())), ExitCode.WRONG
    if isinstance(error, OSError) and error.errno is not None:
        # The system's word: a full disk, too many files. These two number what they say in ways of their own.
        has_own_words = type(error).__module__ in ("socket", "ssl")
        word = error.strerror if has_own_words else os.strerror(error.errno)
        file = f": {error.filename}" if isinstance(error.filename, str) else ""
        return f"{word}{file}; --debug shows what was tried", ExitCode.FAULT
    # What it says may hold anything, a secret as well.
    return f"unexpected {type(error).__name__}: run it again with --debug, and report what it shows", (
        ExitCode.UNEXPECTED
    )


def _usage(error: BaseException, message: str) -> str:
    context = getattr(error, "ctx", None)
    program = "trunkline" if context is None else context.command_path
    message = message.rstrip(". ")
    return f"{message[:1].lower()}{message[1:]}{' See' if message.endswith('?') else '; see'} `{program} --help`"
