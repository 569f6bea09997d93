"""What the environment names mean, and that those without a meaning are told."""

import logging
from pathlib import Path

import pytest
from trunkline.compat.contextforge.settings import (
    MEANINGLESS,
    ContextForgeSettings,
    SettingError,
    is_off,
    read_environment,
    read_settings,
    tell_meaningless,
)


def test_nothing_set_is_one_upstream_session_for_each_session_of_a_client() -> None:
    assert read_settings({}) == ContextForgeSettings()
    assert read_settings({}).pooling("workflow").reuse == "workflow"


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"TRUNKLINE_REUSE": "USER "}, "reuse", "user"),
        ({"MCP_SESSION_POOL_ENABLED": "false"}, "reuse", "none"),
        ({"MCP_SESSION_POOL_ENABLED": "true"}, "reuse", "workflow"),
        ({"MCP_SESSION_POOL_ENABLED": "false", "TRUNKLINE_REUSE": "user"}, "reuse", "user"),
        ({"TRUNKLINE_REUSE_USER": "a, b ,"}, "reuse_user", ("a", "b")),
        ({"TRUNKLINE_REUSE_NONE": "c"}, "reuse_none", ("c",)),
        ({"SESSION_TTL": "60"}, "idle_timeout", 60.0),
        ({"MCP_SESSION_POOL_TTL": "50", "SESSION_TTL": "60"}, "idle_timeout", 50.0),
        ({"MCP_SESSION_POOL_IDLE_EVICTION": "40", "MCP_SESSION_POOL_TTL": "50"}, "idle_timeout", 40.0),
        ({"MCP_SESSION_POOL_MAX_PER_KEY": "3"}, "max_sessions_per_user", 3),
        ({"TRUNKLINE_MAX_INFLIGHT": "5"}, "max_inflight", 5),
        ({"TRUNKLINE_MAX_WORKFLOWS": "6"}, "max_workflows", 6),
        ({"TRUNKLINE_MAX_WORKFLOWS_PER_USER": "7"}, "max_workflows_per_user", 7),
        ({"TRUNKLINE_REQUEST_TIMEOUT": "7.5"}, "request_timeout", 7.5),
        ({"TRUNKLINE_REQUEST_TIMEOUT": "7.5", "TOOL_TIMEOUT": "900"}, "request_timeout", 7.5),
        ({"TOOL_TIMEOUT": "900"}, "request_timeout", 900.0),
        ({"TOOL_TIMEOUT": "60"}, "request_timeout", 300.0),
        ({"TOOL_TIMEOUT": "long"}, "request_timeout", 300.0),
    ],
)
def test_a_name_has_its_meaning(environ: dict[str, str], field: str, value: object) -> None:
    assert getattr(read_settings(environ), field) == value


def test_an_option_wins_over_the_environment() -> None:
    assert read_settings({"TRUNKLINE_REUSE": "user"}, reuse="none").reuse == "none"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"TRUNKLINE_REUSE": "everybody"}, "TRUNKLINE_REUSE"),
        ({"SESSION_TTL": "long"}, "SESSION_TTL"),
        ({"SESSION_TTL": "0"}, "SESSION_TTL"),
        ({"TRUNKLINE_MAX_INFLIGHT": "inf"}, "TRUNKLINE_MAX_INFLIGHT"),
        ({"TRUNKLINE_MAX_INFLIGHT": "0.5"}, "TRUNKLINE_MAX_INFLIGHT"),
        ({"MCP_SESSION_POOL_MAX_PER_KEY": "1.5"}, "MCP_SESSION_POOL_MAX_PER_KEY"),
    ],
)
def test_a_wrong_value_names_its_variable(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        read_settings(environ)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingError, match="pool_size"):
        read_settings({}, pool_size=3)


@pytest.mark.parametrize(("value", "off"), [("off", True), (" OFF", True), ("0", True), ("on", False), ("", False)])
def test_the_switch(value: str, off: bool) -> None:
    assert is_off({"TRUNKLINE_CONTEXTFORGE": value}) is off
    assert not is_off({})


def test_each_name_without_a_meaning_is_told_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tell_meaningless({**dict.fromkeys(MEANINGLESS, "1"), "SESSION_TTL": "3"})
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(MEANINGLESS)
    assert all(any(name in line for line in told) for name in MEANINGLESS)


def test_a_name_of_the_pool_that_nobody_knows_is_told_and_those_that_mean_something_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meant = ("ENABLED", "IDLE_EVICTION", "MAX_PER_KEY", "TTL", "SIZES")
    with caplog.at_level(logging.WARNING):
        tell_meaningless({f"MCP_SESSION_POOL_{name}": "1" for name in meant})
    assert [record.args[0] for record in caplog.records if record.args] == ["MCP_SESSION_POOL_SIZES"]


def test_names_are_the_same_in_small_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("trunkline_reuse", "user")
    assert read_settings(read_environment(tmp_path)).reuse == "user"
