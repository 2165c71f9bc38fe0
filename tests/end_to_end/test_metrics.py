"""Metrics of a real node: each has its help, and dashboard and alerts name only those there are."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from node.metrics import CLUSTER, FIGURES, RAFT, SOMETIMES
from tests.end_to_end.cluster import ROOT, Cluster, running_cluster

pytestmark = pytest.mark.processes

FOLDER = ROOT / "docs" / "operations"

_NAME = re.compile(r"(?<![\w$])(?:holdfast_\w+|up)\b(?!\s*\()")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")

SCRAPED_LABELS = {"job", "instance"}
"""What Prometheus adds to every series."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One node that has served every kind of request that is counted."""
    async with running_cluster(tmp_path_factory.mktemp("metrics"), 1) as made:
        node = made.nodes[0]
        async with aiohttp.ClientSession() as session:
            url = f"{node.url}/api/v1/files/default/f"
            async with session.put(url, data=b"x" * 10_000) as response:
                assert response.status == 201
            async with session.get(url) as response:
                assert await response.read() == b"x" * 10_000
            async with session.get(f"{node.url}/api/v1/metadata/default/f") as response:
                assert response.status == 200
        yield made


async def scraped(cluster: Cluster) -> list[Metric]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{cluster.nodes[0].url}/metrics") as response,
    ):
        text = await response.text()
    return list(text_string_to_metric_families(text))


def labels_by_series(families: list[Metric]) -> dict[str, set[str]]:
    """The labels of every series that there is, by its name."""
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_every_figure_of_a_node_has_its_sentence(cluster: Cluster) -> None:
    """What a subsystem adds to the load is explained in the table, and nothing else is in it."""
    status = await cluster.status()
    assert set(status["load"]) | SOMETIMES == set(FIGURES)
    families = {family.name: family for family in await scraped(cluster)}
    for name, figure in {**RAFT, **CLUSTER, **FIGURES}.items():
        if name in SOMETIMES and f"holdfast_{name}" not in families:
            continue
        family = families[f"holdfast_{name}"]
        assert (family.documentation, family.type) == (
            figure.help,
            "counter" if figure.is_counter else "gauge",
        )
    assert "A figure of this node" not in {each.documentation for each in families.values()}


@pytest.mark.asyncio(loop_scope="module")
async def test_metrics_and_the_cluster_document_say_the_same(cluster: Cluster) -> None:
    """Prometheus sees what `status` sees."""
    status = await cluster.status()
    values = {
        sample.name: sample.value
        for family in await scraped(cluster)
        for sample in family.samples
        if not sample.labels
    }
    for name in ("chunks", "chunks_stored_bytes", "unrecoverable_chunks", "disk_size_bytes"):
        assert values[f"holdfast_{name}"] == status["load"][name]
    assert values["holdfast_warnings"] == len(status["warnings"])
    assert values["holdfast_cluster_epoch"] == status["epoch"]
    assert values["holdfast_raft_term"] == status["raft"]["term"]


def alert_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]:
        yield panel
        yield from panel.get("panels", [])


def expressions() -> list[str]:
    """All of both files, with Grafana's variables filled in as Grafana would."""
    found = [rule["expr"] for rule in alert_rules()]
    found += [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    variables = json.loads((FOLDER / "grafana-dashboard.json").read_text())["templating"]["list"]
    for variable in variables:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert inner is not None
            assert inner[2] in SCRAPED_LABELS
            found.append(inner[1])
    return [each.replace("$__rate_interval", "5m") for each in found]


@pytest.mark.asyncio(loop_scope="module")
async def test_dashboard_and_alerts_name_only_metrics_that_exist(cluster: Cluster) -> None:
    """Names and labels: what is renamed in the program can't silently vanish from both."""
    series = labels_by_series(await scraped(cluster))
    series["up"] = set()
    every_label = set().union(*series.values()) | SCRAPED_LABELS
    for expression in expressions():
        bare = _STRING.sub('""', expression)
        names = _NAME.findall(bare)
        assert names, expression
        assert set(names) <= set(series), expression
        for name in names:
            for matchers in re.findall(rf"\b{name}\{{([^}}]*)\}}", bare):
                labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
                assert labels <= series[name] | SCRAPED_LABELS, expression
        for labels in _GROUPING.findall(bare):
            assert {label.strip() for label in labels.split(",")} <= every_label, expression
        for opening, closing in ("()", "{}", "[]"):
            assert bare.count(opening) == bare.count(closing), expression


def test_the_alert_rules_have_the_form_that_prometheus_wants() -> None:
    """Each rule has a name of its own, an expression, a severity, and a page to read."""
    rules = alert_rules()
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"Holdfast[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert (FOLDER / rule["annotations"]["page"]).is_file(), rule["alert"]


def test_the_dashboard_has_the_form_that_grafana_wants() -> None:
    """Panels with ids of their own that do not overlap, each with a query and its data source."""
    document = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    assert document["title"] == "Holdfast"
    assert document["schemaVersion"] >= 36
    seen: set[int] = set()
    covered: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["id"] not in seen
        seen.add(panel["id"])
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & covered, panel["title"]
        covered |= cells
        assert max(x for x, _ in cells) < 24
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["description"]
        assert panel["targets"]
        for target in [panel, *panel["targets"]]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
