"""`trunkline token`: a bearer token, and the entry of the settings that accepts it."""

import hashlib
import secrets
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from .console import printable, write_json
from .exits import WrongArgument
from .settings import TokenEntry
from .settings.reference import as_toml


class Made(NamedTuple):
    """A token that nobody has yet; it is kept nowhere."""

    token: str
    entry: TokenEntry


def make(subject: str, tenant: str, *, admin: bool) -> Made:
    """A new token for a subject.

    Raises:
        WrongArgument: a name that cannot be printed, and so not be written into the settings; a subject of nothing.
    """
    if not subject:
        raise WrongArgument("SUBJECT: a token stands for somebody, and this names nobody")
    for argument, name in (("SUBJECT", subject), ("--tenant", tenant)):
        if not name.isprintable():
            raise WrongArgument(f"{argument}: expected a name that can be printed; is it in the terminal's encoding?")
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    return Made(token, TokenEntry(sha256=digest, tenant=tenant, subject=subject, admin=admin))


def show(made: Made, *, as_json: bool, console: Console) -> None:
    """Print the token, and what the settings hold of it. No line is broken: both are there to be copied."""
    entry = {name: getattr(made.entry, name) for name in TokenEntry.__struct_fields__}
    if as_json:
        write_json({"token": made.token, "entry": entry}, console)
        return
    given = {name: value for name, value in entry.items() if value is not False}
    console.print(Text(made.token, "bold"), soft_wrap=True)
    console.print(Text("\n# shown once; one entry of auth.tokens:", "dim"), soft_wrap=True)
    console.print(Text(printable(as_toml(given))), soft_wrap=True)
