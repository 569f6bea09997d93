"""What all tests share: the event loop they run on, the peers that many need, and what is told at the end."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness.backends import Backends
from harness.browser import Browser, browser
from harness.redis_server import RedisServer, redis_server
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from hypothesis import HealthCheck, settings

# A busy machine takes longer than a fifth of a second for an example now and then, and to draw one: that is no failure.
settings.register_profile("tests", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio: what the gateway and its libraries run on."""
    return "asyncio"


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[Upstream]:
    """A stateful server on the SDK's 2.x line; who ends one starts one of its own."""
    with running_upstream("sdk2") as server:
        yield server


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    """The same, with nothing recorded yet."""
    upstream_process.reset()
    return upstream_process


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a settings file."""

    def write(text: str) -> Path:
        path = tmp_path / "trunkline.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def backends() -> Iterator[Backends]:
    """Real servers of shared directories, started as they are needed."""
    with closing(Backends()) as started:
        yield started


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A redis with nothing in it."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window; skips or fails the test where there is none."""
    with browser() as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests have recorded (`record_property`), of those that passed as well."""
    ended = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" and report.user_properties
    ]
    if ended:
        terminalreporter.section("figures")
    for report in ended:
        figures = ", ".join(f"{name}: {value}" for name, value in report.user_properties)
        terminalreporter.write_line(f"{report.nodeid}\n    {figures}")
