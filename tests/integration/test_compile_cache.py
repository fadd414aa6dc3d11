"""The second start of a variant compiles nothing, and only our patch makes that so."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.served import Served, served
from serve.command import engine_environment
from serve.keeper import descendants
from serve.plan import make_plan
from serve.settings import REPOSITORY, read_settings
from tests.integration.conftest import settings
from tests.serve.live import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

UNPATCHED = Path(__file__).parent / "unpatched"
VERDICT = re.compile(r"Directly load AOT|load failure from .* reason: (.*)|saved AOT compiled")


def cache_of(running: Served) -> dict[str, Any]:
    return json.loads(running.get("/ready"))["compile_cache"]


def test_the_second_start_loads_every_graph_and_compiles_none(seq8_best, cache_root, tmp_path):
    first = cache_of(seq8_best)
    # Another test's engine of this variant may have compiled for it.
    assert (first["loaded"] + first["compiled"], first["refused"]) == (2, [])
    with served(settings("seq8-best", cache_root), tmp_path) as again:
        assert cache_of(again) == {"loaded": 2, "compiled": 0, "refused": []}
        assert again.log.read_text().count("Directly load AOT compilation from path") == 2
        a_worker_that_is_killed_is_replaced_without_an_import(again)


def a_worker_that_is_killed_is_replaced_without_an_import(running: Served) -> None:
    first = worker_of(running)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: state_of(running).get("restarts") == 1, "restarted")
    wait_for(lambda: state_of(running)["state"] == "ready", "ready again")
    assert worker_of(running) != first
    assert cache_of(running) == {"loaded": 2, "compiled": 0, "refused": []}
    # The log of the zygote: it imported once.
    assert running.log.read_text().count("doesn't include CPU backend") == 1


def state_of(running: Served) -> dict[str, object]:
    return json.loads(running.get("/variant"))["engine"]


def worker_of(running: Served) -> int:
    return next(
        pid
        for pid in descendants(running.process.pid)
        if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Worker")
    )


def test_stock_vllm_still_refuses_what_it_saved(seq8, cache_root, tmp_path):
    """Fails when ``aot_reload`` is no longer needed: then delete the patch."""
    plan = make_plan(
        read_settings(settings("seq8", cache_root)), Path(sys.executable), tmp_path / "engine.sock"
    )
    env = engine_environment(plan.command, os.environ)
    env["PYTHONPATH"] = f"{UNPATCHED}:{REPOSITORY}"
    process = subprocess.Popen(
        plan.command.argv,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        verdict = next(filter(None, map(VERDICT.search, process.stdout)), None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert verdict is not None
    assert "finalize_loading" in (verdict[1] or ""), verdict[0]
