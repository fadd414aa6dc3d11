"""The gateway as a process while all around it fails: the scenarios of ``scripts.gateway.faults``.

What is asserted is each scenario's own rule. ``tests/scripts/test_gateway_faults.py`` has what sees
to it that a rule which is broken is seen.
"""

import json
from pathlib import Path

import pytest

from scripts.gateway.faults import SCENARIOS, play, row
from scripts.gateway.scenario import Scenario, Size

SMALL = Size(0.1)
# All 10,000 requests.
WHOLE = {"client-bursts": Size(1.0)}
# In tests/serve/test_wire.py, with limits that are sooner over.
ELSEWHERE = {"wire-slowloris", "wire-headers"}


@pytest.mark.parametrize(
    "scenario",
    [one for one in SCENARIOS if one.name not in ELSEWHERE],
    ids=lambda scenario: scenario.name,
)
def test_a_promise_is_kept_whatever_fails(scenario: Scenario, tmp_path: Path) -> None:
    counts = play(scenario, tmp_path, WHOLE.get(scenario.name, SMALL))
    broken = scenario.rule.broken(counts)
    assert not broken, json.dumps(row(scenario, counts, broken), indent=1)


def test_every_scenario_has_a_name_of_its_own() -> None:
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)
