"""The dashboard and the alerts ask for what a gateway tells."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from harness.gateways import Gateway, until
from harness.gateways import gateway as running_gateway
from harness.wire import Wire
from prometheus_client.parser import text_string_to_metric_families
from trunkline.gateway.metrics import COUNTERS, ENDS, FAULTS
from trunkline.mux import errors

pytestmark = pytest.mark.checkout

FOLDER = Path(__file__).parent.parent / "docs" / "monitoring"

_METRIC = re.compile(r"\b(trunkline_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
    return loaded


def alerts() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def targets() -> Iterator[tuple[str, str]]:
    """The expressions of the dashboard, and what is shown of each series."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]


EXPRESSIONS = [
    *targets(),
    *((rule["expr"], " ".join(rule["annotations"].values())) for rule in alerts()),
]
"""Every expression, with the text in which labels of its series stand."""


async def use(gateway: Gateway) -> None:
    """Let something of each kind happen that a gateway of one worker can tell of."""
    async with Wire(gateway.url("demo")) as wire:
        await wire.open()
        await (await wire.call("echo", {"text": "x"})).response()
        assert (await wire.post(b"no json")).status == 400
        await wire.delete()
        await until(lambda: gateway.metric("trunkline_channels_closed_total"))


@pytest.fixture(scope="module")
def told() -> dict[str, frozenset[str]]:
    """The samples of a running gateway: names to labels. Where there can be none yet, as they are declared."""
    with running_gateway("--demo") as gateway:
        anyio.run(use, gateway)
        families = list(text_string_to_metric_families(gateway.fetch("/metrics")))
    found = {sample.name: frozenset(sample.labels) for family in families for sample in family.samples}
    declared = {family.metric: frozenset(family.labels) for family in COUNTERS.values()}
    for family in families:
        if not family.samples:
            found[f"{family.name}_total"] = declared[family.name]
    return found


def _stem(name: str) -> str:
    """The metric that a sample is of."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize(("expression", "shown"), EXPRESSIONS)
def test_an_expression_asks_for_what_a_gateway_tells(
    told: dict[str, frozenset[str]], expression: str, shown: str
) -> None:
    used = _METRIC.findall(expression)
    assert used, "it asks for nothing of a gateway"
    grouped = {label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",")}
    for name, matchers in used:
        assert name in told
        assert {label for label, _ in _MATCHER.findall(matchers)} <= told[name]
        assert grouped <= told[name]
    labels = grouped or (told[used[0][0]] if "sum" not in expression else set())
    assert {label for label in _SHOWN.findall(shown) if label != "value"} <= labels


REASONS = {kind.reason for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "reason")}
AT_LIMITS = {"listeners", "connections", "gave_way"}
"""Why clients are refused or cut at a limit, beside the names of settings."""

VALUES = {
    "outcome": {"ok", "error", "refused", *REASONS, *(COUNTERS["takeovers"].fixed or ((),))[0]},
    "reason": {*ENDS, *FAULTS, *REASONS, "unauthorized", *AT_LIMITS},
    "result": {"hit", "miss", "spare", "bypass"},
    "state": {"opening", "active", "idle", "draining"},
    "kind": {"initialize"},
}


@pytest.mark.parametrize(("expression", "shown"), EXPRESSIONS)
def test_an_expression_asks_for_values_that_there_are(expression: str, shown: str) -> None:
    for label, values in _MATCHER.findall(expression):
        for value in values.split("|"):
            assert value in VALUES.get(label, ()) or value in ("$server", "max_.+"), (label, value)


def test_every_metric_has_its_place_on_the_dashboard(told: dict[str, frozenset[str]]) -> None:
    asked = {name for expression, _ in targets() for name, _ in _METRIC.findall(expression)}
    assert {_stem(name) for name in asked} == {_stem(name) for name in told}


def test_every_metric_and_alert_is_explained_to_operators(told: dict[str, frozenset[str]]) -> None:
    page = (FOLDER.parent / "operating.md").read_text()
    rows = re.findall(r"^\| `(trunkline_\w+)(?:\{([\w,]+)\})?` \|", page, re.MULTILINE)
    explained = {name: {label for label in labels.split(",") if label} for name, labels in rows}
    assert explained == {_stem(name): labels - {"le"} for name, labels in told.items()}
    for rule in alerts():
        assert rule["alert"].removeprefix("Trunkline") in page or rule["alert"] == "TrunklineAbsent"


def test_the_dashboard_has_its_variables_and_no_panel_twice() -> None:
    loaded = dashboard()
    variables = {variable["name"]: variable for variable in loaded["templating"]["list"]}
    assert variables.keys() == {"datasource", "server"}
    assert variables["server"]["query"]["query"] == "label_values(trunkline_inflight, server)"
    panels = loaded["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))


def test_whoever_is_refused_or_cut_at_a_limit_is_an_alert() -> None:
    [rule] = [rule for rule in alerts() if rule["alert"] == "TrunklineAtItsLimits"]
    [(_, reasons)] = _MATCHER.findall(rule["expr"])
    assert all(re.fullmatch(reasons, reason) for reason in ("max_workflows", *AT_LIMITS))


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"Trunkline[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}
