"""Prometheus, its alerts, the Grafana dashboard and the table of metrics: all of them against what the server really exports."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from commands import ROOT, document

from nowcast_server.metrics import Metrics


def exported() -> dict[str, set[str]]:
    """Every series the server exports, with its labels; Serve's scrape adds `replica`."""
    series: dict[str, set[str]] = {}
    registry = Metrics().registry
    for collector, names in registry._collector_to_names.items():
        labels = set(collector._labelnames) | {"replica", "instance", "job"}
        for name in names:
            series[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return series


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric an expression reads, with the labels it selects by."""
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    concrete = re.sub(r"\$__rate_interval|\$__range", "5m", expression)
    stack = [parser.parse(concrete)]
    while stack:
        node = stack.pop()
        selector = getattr(node, "vector_selector", node)
        if hasattr(selector, "matchers"):
            yield selector.name, {matcher.name for matcher in selector.matchers.matchers}
        stack += [child for name in ("lhs", "rhs", "expr", "param") if (child := getattr(node, name, None)) is not None]
        stack += [*getattr(node, "args", [])]


def check(expression: str) -> int:
    """How many series the expression reads; an error if one is not exported."""
    known, found = exported(), list(selectors(expression))
    for name, labels in found:
        if name != "up":  # Prometheus' own
            assert name in known, f"{name} in {expression}"
            assert labels <= known[name], f"{labels - known[name]} in {expression}"
    return len(found)


@pytest.fixture(scope="module")
def dashboard() -> Any:
    """The dashboard's JSON."""
    return json.loads((ROOT / "deploy/grafana/nowcast.json").read_text())


def test_the_check_itself_notices() -> None:
    """A query for a metric that was renamed would draw an empty panel for ever."""
    assert check("sum(rate(nowcast_forecasts_total[5m])) / 2 > 0") == 1
    for wrong in ("nowcast_forcasts_total", 'nowcast_jobs{outcome="x"}', "histogram_quantile(0.5, nowcast_queue_bucket)"):
        with pytest.raises(AssertionError):
            check(wrong)


def test_every_panel_asks_for_series_the_server_exports(dashboard: Any) -> None:
    """A panel would be empty for ever, and nobody would know why."""
    series = exported()
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(targets) >= 20
    for expression in targets:
        assert check(expression) > 0, expression
        grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
        assert all(grouped <= series[name] for name, _ in selectors(expression) if grouped), expression


def test_alerts_are_valid() -> None:
    """An alert would never fire: an expression that does not parse, or a metric that does not exist."""
    rules = [rule for group in document("deploy/prometheus/alerts.yml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert check(rule["expr"]) > 0
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= {"instance", "job"}


def test_prometheus_scrapes_what_answers() -> None:
    """Prometheus would scrape a name or port where nothing answers."""
    config, compose = document("deploy/prometheus/prometheus.yml"), document("docker-compose.yml")
    assert all((ROOT / "deploy/prometheus" / name).is_file() for name in config["rule_files"])
    server, ray = config["scrape_configs"]
    assert server["static_configs"] == [{"targets": ["server:8440"]}]
    (found,) = ray["dns_sd_configs"]
    for name in found["names"]:
        command = compose["services"][name]["command"]
        assert command[command.index("--metrics-export-port") + 1] == str(found["port"])
