"""The dashboard is what the script makes, Grafana knows all of it, and what it asks for exists."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from scripts import dashboard as made
from scripts.served import Served
from serve.engine import State, Status
from serve.routes import Route
from serve.telemetry import Metrics, Seen
from tests.deploy.conftest import scrape
from tests.deploy.shipped import (
    COMPOSE,
    DASHBOARD,
    PROVISIONING,
    dashboard,
    metrics_named,
    panels,
    read,
)

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)", re.MULTILINE)


def as_grafana_has_it(model: dict[str, Any]) -> Any:
    """Through Grafana's published model of dashboards and panels: what it does not know is lost."""
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(model), cls=JSONEncoder))


def lost(ours: Any, theirs: Any, at: str = "") -> list[str]:
    """Where ``theirs``, which may hold more, lacks something of ``ours`` or has it otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            place
            for key, value in ours.items()
            for place in (
                lost(value, theirs[key], f"{at}/{key}") if key in theirs else [f"{at}/{key}"]
            )
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        return [place for i, (a, b) in enumerate(pairs) for place in lost(a, b, f"{at}/{i}")]
    return [] if ours == theirs else [at]


def test_the_file_is_what_the_script_makes() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == made.text(), "run `make fix`"


def test_grafana_knows_every_key_and_value_of_it() -> None:
    assert lost(dashboard(), as_grafana_has_it(dashboard())) == []


def test_a_key_that_grafana_does_not_know_would_be_noticed() -> None:
    model = dashboard()
    model["panels"][1]["options"]["textMood"] = "name"
    assert lost(model, as_grafana_has_it(model)) == ["/panels/1/options/textMood"]


def test_every_panel_has_its_own_id_and_place_and_says_what_it_shows() -> None:
    all_of_them = dashboard()["panels"]
    assert len({panel["id"] for panel in all_of_them}) == len(all_of_them)
    for one, other in combinations((panel["gridPos"] for panel in all_of_them), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert all(panel["description"].endswith(".") for panel in panels())
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in all_of_them)


def test_the_source_that_panels_name_is_the_one_provisioned() -> None:
    (source,) = read(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    named = [panel["datasource"] for panel in panels()]
    named += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert all(it == {"type": source["type"], "uid": source["uid"]} for it in named)


def test_the_dashboard_is_mounted_where_grafana_is_told_to_look() -> None:
    (provider,) = read(PROVISIONING / "dashboards" / "preheat.yml")["providers"]
    grafana = read(COMPOSE)["services"]["grafana"]
    folders = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    assert folders["./grafana/dashboards"] == provider["options"]["path"]
    assert folders["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


async def test_the_gateway_has_every_metric_of_its_own_that_is_asked_for() -> None:
    metrics = Metrics()
    seen = Seen(Route("/v1/completions"), "id", 0.0, status=200, queued=0.1, refused="x")
    metrics.count(seen, 1.0)
    metrics.tokens.labels("-", "read").inc()
    status = Status(State.READY, "", {"imports": 1.0}, (), (), (), 0, "", fell_back=False)
    exposed = set(SAMPLE.findall((await metrics.expose(status)).decode()))
    ours = {name for name in metrics_named() if name.startswith("preheat_")}
    assert ours
    assert ours - exposed == set()


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_real_scrape_has_every_metric_that_is_asked_for(gateway: Served) -> None:
    assert metrics_named() - set(SAMPLE.findall(scrape(gateway))) == set()
