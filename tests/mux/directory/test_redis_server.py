"""URLs of redis, and what is said of those that are none."""

import pytest
import redis
from trunkline.mux.directory.redis_server import Address, parse_address, takes_no_writes, unavailable


def test_a_plain_url_is_kept() -> None:
    for url in ("redis://127.0.0.1", "rediss://u:p@redis.example:6380/3", "unix:///run/redis.sock?db=1"):
        assert parse_address(url) == Address("plain", url)


def test_sentinels_service_and_identity() -> None:
    address = parse_address("rediss+sentinel://us%40er:se%3Acret@a:1,b,[::1]:3/main/2?sentinel_password=other")
    assert address == Address(
        "sentinel",
        hosts=(("a", 1), ("b", 26379), ("::1", 3)),
        service="main",
        db=2,
        tls=True,
        username="us@er",
        password="se:cret",
        sentinel_password="other",
    )
    assert "cret" not in repr(address)
    assert "other" not in repr(address)


def test_nodes_of_a_cluster() -> None:
    address = parse_address("redis+cluster://:secret@a,b:7")
    assert (address.kind, address.hosts, address.password) == ("cluster", (("a", 6379), ("b", 7)), "secret")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "must begin with"),
        ("http://secret@x", "must begin with"),
        ("redis+other://secret@x", "must begin with"),
        ("redis+cluster://", "must begin with"),
        ("redis://", "needs a host"),
        ("redis://:secret@host:port", "not valid"),
        ("redis://:secret@host:99999", "not valid"),
        ("redis://:secret@host?socket_timeout=secret", "not valid"),
        ("unix://", "path of a socket"),
        ("redis+sentinel://:secret@host", "name of the service"),
        ("redis+sentinel://:secret@host/main/x", "is a number"),
        ("redis+sentinel://:secret@host:x/main", "host:port"),
        ("redis+sentinel://host/main?pass=secret", "no option pass"),
        ("redis+cluster://:secret@host/2", "no databases"),
        ("redis+cluster://a,,b", "host:port"),
    ],
)
def test_what_is_wrong_is_said_without_secrets(url: str, word: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_address(url)
    assert word in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (redis.ResponseError("MISCONF Errors writing to /secret/path"), "ResponseError MISCONF"),
        (redis.ResponseError("secret of a script"), "ResponseError"),
        (redis.ResponseError("SECRETSECRETSECRET of a script"), "ResponseError"),
        (redis.ConnectionError("SECRET refused"), "ConnectionError"),
        (OSError("SECRET"), "OSError"),
    ],
)
def test_g12_of_what_redis_fails_with_its_kind_and_its_own_word_for_it_are_told(error: Exception, why: str) -> None:
    assert unavailable(error).message == f"redis does not serve: {why}"


@pytest.mark.parametrize(
    "error",
    [
        redis.ReadOnlyError("You can't write against a read only replica."),
        redis.ResponseError("Error running script (call to f_1): @user_script:1: -READONLY You can't write"),
    ],
)
def test_a_replica_is_told_as_such(error: Exception) -> None:
    assert takes_no_writes(error)
    assert "name the primary" in (unavailable(error).remedy or "")


def test_what_else_redis_fails_with_does_not_make_it_a_replica() -> None:
    assert not takes_no_writes(redis.ResponseError("MISCONF"))
    assert not takes_no_writes(OSError("-READONLY "))
    assert not takes_no_writes(None)
