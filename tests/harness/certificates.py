"""Certificates of a test's own, for this host."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def reads_of_the_systems(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """Has an item more each time that the system's certificates are read."""
    reads: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def counted(cafile: str | None = None) -> ssl.SSLContext:
        reads.append(make())
        return reads[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    return reads


class Certificate(NamedTuple):
    """Two files in PEM, and the key."""

    cert: Path
    key: Path
    private: ec.EllipticCurvePrivateKey

    def lock(self, passphrase: bytes) -> None:
        """Have the key's file ask for a passphrase."""
        _write(self.private, self.key, serialization.BestAvailableEncryption(passphrase))

    def trusting(self) -> ssl.SSLContext:
        """The side of a client that trusts it, and nothing else."""
        return ssl.create_default_context(cafile=str(self.cert))

    def showing(self) -> ssl.SSLContext:
        """The side of a server that shows it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


def certificate(folder: Path, subject: str = "test", *, since: int = 0, until: int = 36_500) -> Certificate:
    """One for 127.0.0.1 and localhost, good from and to so many days from now, written to `cert.pem` and `key.pem`."""
    made = Certificate(folder / "cert.pem", folder / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    begin, end = (now + datetime.timedelta(days) for days in (since, until))
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    builder = x509.CertificateBuilder(
        name, name, made.private.public_key(), x509.random_serial_number(), begin, end
    ).add_extension(x509.SubjectAlternativeName(names), critical=False)
    made.cert.write_bytes(builder.sign(made.private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    _write(made.private, made.key, serialization.NoEncryption())
    return made


def _write(key: ec.EllipticCurvePrivateKey, file: Path, encryption: serialization.KeySerializationEncryption) -> None:
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
