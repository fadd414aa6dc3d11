"""What lies in deploy/, read as those read it who will use it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from serve.settings import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
COMPOSE_GPU = DEPLOY / "compose.gpu.yaml"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "preheat.json"
PROVISIONING = DEPLOY / "grafana" / "provisioning"

# Every metric of ours and of vLLM's; `up` and `ALERTS` are Prometheus' own.
METRIC = re.compile(r"\b(?:preheat_|vllm:)\w+")
# What Grafana takes with a scrape every 5 s: four of them.
RATE_INTERVAL = "20s"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def dashboard() -> dict[str, Any]:
    model: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return model


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Title and expression of everything the dashboard asks, as Grafana would send it."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", RATE_INTERVAL))
        for panel in panels()
        for target in panel["targets"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in read(RULES)["groups"] for rule in group["rules"]}


def metrics_named() -> set[str]:
    """Every metric that the dashboard or an alert asks for."""
    expressions = [
        *(asked for _, asked in queries()),
        *(rule["expr"] for rule in alerts().values()),
    ]
    return {name for asked in expressions for name in METRIC.findall(asked)}
