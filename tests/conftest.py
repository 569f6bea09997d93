"""What all tests share: the event loop they run on, the path to the harness, and what is told at the end."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine takes longer than a fifth of a second for an example now and then, and to draw one: that is no failure.
settings.register_profile("tests", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# The harness is a package of its own; appended, so that no folder of tests hides a module of that name.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio: what the gateway and its libraries run on."""
    return "asyncio"


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
