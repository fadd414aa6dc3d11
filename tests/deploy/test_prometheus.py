"""A real Prometheus with the shipped configuration, looking at a real gateway with a real vLLM."""

import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts.served import Served
from serve.keeper import descendants
from serve.settings import REPOSITORY
from tests.deploy.conftest import Prometheus, until
from tests.deploy.shipped import CONFIG, DEPLOY, RATE_INTERVAL, alerts, queries

pytestmark = pytest.mark.prometheus

# Nothing fires: the one panel that is empty when all is well.
MAY_BE_EMPTY = {"Alerts"}
RULES_TEST = REPOSITORY / "tests" / "deploy" / "rules_test.yml"


def ran(*command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_and_its_rules_are_valid(promtool):
    assert f"{len(alerts())} rules found" in ran(promtool, "check", "config", CONFIG)


def test_alerts_fire_when_they_should_and_not_before(promtool):
    assert "SUCCESS" in ran(promtool, "test", "rules", RULES_TEST)


def test_every_alert_is_tried_and_explained():
    tried, explained = RULES_TEST.read_text(), (DEPLOY / "README.md").read_text()
    for name, rule in alerts().items():
        assert name in tried
        assert f"`{name}`" in explained
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.engine
@pytest.mark.timeout(900)
class TestLive:
    def test_the_gateway_is_scraped(self, prometheus):
        (target,) = prometheus.get("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        assert target["labels"]["job"] == "preheat"

    def test_every_panel_shows_a_number(self, prometheus):
        empty = [
            (title, asked)
            for title, asked in queries()
            if title not in MAY_BE_EMPTY and not numbers(prometheus, asked)
        ]
        assert empty == []

    def test_what_may_be_empty_parses(self, prometheus):
        for title, asked in queries():
            if title in MAY_BE_EMPTY:
                prometheus.query(asked)

    def test_every_rule_is_evaluated_without_an_error(self, prometheus):
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules} == set(alerts())
        assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
        for rule in alerts().values():
            prometheus.query(rule["expr"])

    def test_acceptance_is_what_four_drafts_can_give(self, prometheus):
        shown, now = dict(queries()), str(time.time())
        (length,) = prometheus.query(shown["Acceptance length"], time=now)
        found = prometheus.query(shown["Acceptance by position"], time=now)
        shares = {it["metric"]["position"]: float(it["value"][1]) for it in found}
        assert set(shares) == {"0", "1", "2", "3"}
        assert 1 >= shares["0"] >= shares["1"] >= shares["2"] >= shares["3"] > 0
        assert float(length["value"][1]) == pytest.approx(1 + sum(shares.values()))

    def test_nothing_fires_until_the_worker_is_killed(self, prometheus, gateway):
        cold = bool(numbers(prometheus, 'preheat_compiled_graphs{origin="compiled"} > 0'))
        well = {"PreheatStartedCold"} if cold else set()
        before = numbers(prometheus, "preheat_engine_restarts")[0]
        assert firing(prometheus) == well

        os.kill(worker_of(gateway), signal.SIGKILL)
        until(lambda: firing(prometheus) >= {"PreheatEngineRestarted"}, 60, gateway.log.read_text)
        assert numbers(prometheus, "preheat_engine_restarts")[0] == before + 1
        # The other tests of this gateway find it as it was.
        ready = f'min_over_time(preheat_engine_state{{state="ready"}}[{RATE_INTERVAL}]) == 1'
        until(lambda: numbers(prometheus, ready), 120, gateway.log.read_text)


def numbers(prometheus: Prometheus, expression: str) -> list[float]:
    """What the series have now, without those of which nothing can be said."""
    values = (float(series["value"][1]) for series in prometheus.query(expression))
    return [value for value in values if math.isfinite(value)]


def firing(prometheus: Prometheus) -> set[str]:
    found = prometheus.query('ALERTS{alertstate="firing"}')
    return {series["metric"]["alertname"] for series in found}


def worker_of(running: Served) -> int:
    return next(
        pid
        for pid in descendants(running.process.pid)
        if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Worker")
    )
