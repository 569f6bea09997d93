"""Who is asking: a verified identity, never a string that the client chose."""

import hashlib

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """A verified identity. Two principals are the same only if all three parts are equal.

    Raises:
        TypeError: a part is no text.
    """

    issuer: str
    tenant: str
    subject: str

    def __post_init__(self) -> None:
        if not (isinstance(self.issuer, str) and isinstance(self.tenant, str) and isinstance(self.subject, str)):
            raise TypeError("the parts of a Principal are texts; a tenant that there is not is the empty one")

    @property
    def is_anonymous(self) -> bool:
        """True where the deployment verifies nobody (`auth.mode = "none"`)."""
        return self == ANONYMOUS

    def digest(self) -> str:
        """A short stable hash, for logs: tells principals apart without naming them."""
        packed = msgspec.msgpack.encode(self)  # whatever the parts hold, they do not run together
        return hashlib.blake2b(packed, digest_size=6, person=b"principal").hexdigest()


ANONYMOUS = Principal(issuer="", tenant="", subject="")
"""The one identity that all callers share where authentication is off."""
