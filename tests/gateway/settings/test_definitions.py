"""What the program can be told: the defaults, and what a server's own keys are worth."""

from trunkline.gateway.settings import AuthSection, GatewaySection, Server, Settings, TokenEntry
from trunkline.gateway.settings.definitions import PoolingSection, ServerEventLog
from trunkline.mux.limits import Pooling

HASH = "a" * 64
URL = "http://127.0.0.1:9000/mcp"


def test_nothing_given_is_a_gateway_on_loopback_for_one_worker() -> None:
    settings = Settings()
    assert (settings.gateway.host, settings.gateway.port, settings.gateway.workers) == ("127.0.0.1", 8920, 1)
    assert (settings.directory.backend, settings.auth.mode, settings.servers) == ("memory", "none", {})


def test_what_is_not_said_is_as_the_library_has_it() -> None:
    defaults, section = Pooling(), Settings().pooling
    for field in Pooling.__struct_fields__:
        if field != "event_log":
            assert getattr(section, field) == getattr(defaults, field)
    for field in defaults.event_log.__struct_fields__:
        assert getattr(section.event_log, field) == getattr(defaults.event_log, field)


def test_a_server_has_the_default_pooling_with_its_own_keys_over_it() -> None:
    settings = Settings(
        pooling=PoolingSection(idle_timeout=5, request_timeout=7),
        servers={"up": Server(url=URL, reuse="none", idle_timeout=9, event_log=ServerEventLog(events=3))},
    )
    pooling = settings.pooling_for("up")
    assert (pooling.reuse, pooling.idle_timeout, pooling.request_timeout, pooling.event_log.events) == ("none", 9, 7, 3)


def test_the_values_of_a_section_are_not_shown() -> None:
    settings = Settings(
        gateway=GatewaySection(admin_token="s3cret"),
        auth=AuthSection(tokens=(TokenEntry(sha256=HASH, tenant="t", subject="s"),)),
        servers={"up": Server(url=URL, headers={"Authorization": "s3cret"})},
    )
    shown = f"{settings!r} {settings.gateway} {settings.servers} {settings.auth.tokens}"
    assert "s3cret" not in shown
    assert HASH not in shown


def test_a_server_may_be_a_command_line() -> None:
    listed, spelled = Server(command=("python", "a server.py")), Server(url="stdio:python 'a server.py'")
    assert listed.process == spelled.process == ("python", "a server.py")
    assert Server(url=URL).process == ()
