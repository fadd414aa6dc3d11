import logging
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.engine import State, Status
from serve.logs import TextFormatter
from serve.telemetry import Metrics
from tests.serve.live import Gateway
from tests.serve.test_proxy import raw


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_our_metrics_and_the_engines_are_one_valid_exposition(shared: Gateway) -> None:
    text = await shared.metrics()
    families = [family.name for family in text_string_to_metric_families(text)]
    assert len(families) == len(set(families))
    assert {"preheat_requests", "preheat_start_phase_seconds"} <= set(families)
    assert "vllm:num_requests_running" in families
    values = samples(text)
    assert values["preheat_engine_state", (("state", "ready"),)] == 1
    assert values["preheat_engine_state", (("state", "starting"),)] == 0
    assert values["preheat_compiled_graphs", (("origin", "loaded"),)] == 1


async def test_clients_cannot_invent_label_values(shared: Gateway) -> None:
    for path in ("/invented", "/v1/responses/invented", "/invented/%0a", '/invented"'):
        await raw(
            shared,
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
        )
    text = await shared.metrics()
    assert "invented" not in text
    routes = {dict(labels).get("route") for _, labels in samples(text)}
    assert {"unknown", "/v1/responses/{response_id}"} <= routes


@pytest.fixture
def access_lines() -> Iterator[list[logging.LogRecord]]:
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    logger = logging.getLogger("access")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_a_path_cannot_forge_a_log_line(
    shared: Gateway, access_lines: list[logging.LogRecord]
) -> None:
    await raw(shared, b"GET /x%0aforged HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    (line,) = [line for line in access_lines if "forged" in line.getMessage()]
    assert line.getMessage().startswith("GET /x%0aforged 404 ")
    assert "\n" not in TextFormatter().format(line)


async def test_what_machines_ask_every_few_seconds_is_not_worth_a_line(
    shared: Gateway, access_lines: list[logging.LogRecord]
) -> None:
    for path in ("/health", "/ready", "/metrics", "/variant"):
        async with shared.client.get(path):
            pass
    levels = {line.getMessage().split()[1]: line.levelno for line in access_lines}
    assert levels["/health"] == levels["/ready"] == levels["/metrics"] == logging.DEBUG
    assert levels["/variant"] == logging.INFO


async def test_phases_of_an_earlier_start_are_not_told_of_the_last_one() -> None:
    metrics = Metrics()
    await metrics.expose(Status(State.READY, phases={"imports": 1.0, "compile": 60.0}))
    text = (await metrics.expose(Status(State.READY, phases={"imports": 2.0}))).decode()
    phases = [key for key in samples(text) if key[0] == "preheat_start_phase_seconds"]
    assert phases == [("preheat_start_phase_seconds", (("phase", "imports"),))]
