"""Whole processes: signals, kills, exit statuses, and what is left afterwards."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve import run
from serve.preflight import bind
from tests.serve.live import SERVED, alive, assert_gone, descendants, family, process, wait_for


def stream(url: str, *, tokens: int, token_seconds: float) -> httpx.Request:
    asked = {"prompt": "p", "max_tokens": tokens, "stream": True, "token_seconds": token_seconds}
    return httpx.Request("POST", f"{url}/v1/completions", json=asked)


# Each is said at another moment of the start; the first before our signal handlers stand.
MOMENTS = ("variant fake", "gateway on", "Starting to load model", "engine ready after")


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_exits_130_and_leaves_no_process(tmp_path: Path, moment: str) -> None:
    late = () if moment == MOMENTS[-1] else ("--ready-after", "600")
    with process(tmp_path, *late, TMPDIR=str(tmp_path)) as started:
        started.until_said(moment)
        below = descendants(started.popen.pid)
        started.popen.send_signal(signal.SIGINT)
        assert started.ended() == 130
        assert not any(map(alive, below))
        assert "Traceback" not in started.said
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.log"]


def test_sigterm_before_there_is_a_gateway_is_no_less_clean(tmp_path: Path) -> None:
    with process(tmp_path, "--ready-after", "600", TMPDIR=str(tmp_path)) as started:
        wait_for(lambda: any(tmp_path.glob("preheat-*")), "its folder")
        started.popen.send_signal(signal.SIGTERM)
        assert started.ended() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.log"]


def test_sigterm_lets_a_stream_finish_and_exits_0(tmp_path: Path) -> None:
    with process(tmp_path) as started, httpx.Client() as client:
        started.until_ready()
        answer = client.send(stream(started.url, tokens=8, token_seconds=0.05), stream=True)
        chunks = answer.iter_bytes()
        said = next(chunks)
        started.popen.send_signal(signal.SIGTERM)
        said += b"".join(chunks)
        assert said.count(b"data: ") == 9
        assert said.endswith(b"data: [DONE]\n\n")
        assert started.ended() == 0


def test_one_that_leaves_serves_all_and_keeps_no_connection(tmp_path: Path) -> None:
    with process(tmp_path) as started, httpx.Client() as client:
        started.until_ready()
        kept = client.get(f"{started.url}/health")
        assert "connection" not in kept.headers
        started.popen.send_signal(signal.SIGUSR1)
        started.until_said("leaving")
        # On the connection that was kept, as of a client that never looks.
        last = client.send(stream(started.url, tokens=3, token_seconds=0))
        assert last.headers["connection"] == "close"
        assert last.text.endswith("data: [DONE]\n\n")
        ready = client.get(f"{started.url}/ready")
        assert (ready.status_code, ready.json()["state"]) == (503, "leaving")
        assert client.get(f"{started.url}/health").status_code == 200
        started.popen.send_signal(signal.SIGTERM)
        assert started.ended() == 0


def test_what_had_not_begun_when_it_left_ends_its_connection(tmp_path: Path) -> None:
    with process(tmp_path) as started, httpx.Client() as client:
        started.until_ready()
        body = {"prompt": "p", "max_tokens": 20, "token_seconds": 0.05}
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(client.post, f"{started.url}/v1/completions", json=body, timeout=60)
            wait_for(lambda: in_flight(started.url), "at the engine")
            started.popen.send_signal(signal.SIGUSR1)
            assert asked.result().headers["connection"] == "close"
        started.popen.send_signal(signal.SIGTERM)
        assert started.ended() == 0


def in_flight(url: str) -> bool:
    text = httpx.get(f"{url}/metrics").text
    return "preheat_requests_in_flight 1" in text


def test_told_to_leave_before_there_is_a_gateway_it_starts(tmp_path: Path) -> None:
    with process(tmp_path, TMPDIR=str(tmp_path)) as started:
        wait_for(lambda: any(tmp_path.glob("preheat-*")), "its folder")
        started.popen.send_signal(signal.SIGUSR1)
        started.until_said("engine ready after")
        assert httpx.get(f"{started.url}/ready").json()["state"] == "leaving"
        started.popen.send_signal(signal.SIGTERM)
        assert started.ended() == 0


def test_a_stream_longer_than_the_drain_time_ends_with_an_error_event(tmp_path: Path) -> None:
    env = {"PREHEAT_DRAIN_SECONDS": "0"}
    with process(tmp_path, **env) as started, httpx.Client() as client:
        started.until_ready()
        answer = client.send(stream(started.url, tokens=8, token_seconds=600), stream=True)
        assert answer.status_code == 200
        started.popen.send_signal(signal.SIGTERM)
        last = b"".join(answer.iter_bytes()).strip().rpartition(b"\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "gateway_stopping"
        assert started.ended() == 0


def test_others_can_reach_it_only_with_keys_or_when_that_is_wanted(tmp_path: Path) -> None:
    with process(tmp_path, PREHEAT_HOST="0.0.0.0") as started:
        assert started.ended() == 2
        assert "others can reach it, and no key is asked for" in started.said
        assert "hint: preheat serve keys add --file keys.json" in started.said
    for waived in ({"PREHEAT_NO_KEYS": "true"}, {"PREHEAT_KEYS": "sixteen-letters-and-more"}):
        with process(tmp_path, PREHEAT_HOST="0.0.0.0", **waived) as started:
            started.until_ready()
            url = started.url.replace("0.0.0.0", "127.0.0.1")
            asked = "PREHEAT_KEYS" in waived
            assert httpx.get(f"{url}/v1/models").status_code == (401 if asked else 200)


def test_a_second_ctrl_c_does_not_wait_for_streams(tmp_path: Path) -> None:
    with process(tmp_path) as started, httpx.Client() as client:
        started.until_ready()
        answer = client.send(stream(started.url, tokens=8, token_seconds=600), stream=True)
        started.popen.send_signal(signal.SIGINT)
        # Refused connections say that the first signal has arrived.
        until_refused(started.url)
        started.popen.send_signal(signal.SIGINT)
        assert started.ended() == 130
        answer.close()


def until_refused(url: str) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return
    pytest.fail("still listening")


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PREHEAT_CHECK_MEMORY": "false"}
    with bind("127.0.0.1", 0) as free:
        env["PORT"] = str(port(free))
    url = f"http://127.0.0.1:{env['PORT']}"
    argv = [sys.executable, str(SERVED)]
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, start_new_session=True) as served:
        try:
            wait_for(lambda: is_ready(url), "ready")
            with httpx.Client() as client:
                # More lines than a pipe has room for.
                statuses = {client.get(f"{url}/v1/models").status_code for _ in range(2000)}
                lost = client.get(f"{url}/metrics").text
            assert statuses == {200}
            assert "preheat_log_lines_lost" in lost
            served.send_signal(signal.SIGTERM)
            assert served.wait(40) == 0
        finally:
            served.kill()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_killing_the_gateway_leaves_no_process(tmp_path: Path) -> None:
    with process(tmp_path) as started:
        started.until_ready()
        below = family(started.popen.pid)
        assert len(below) == 5, "guard, keeper, engine, worker and its runaway child"
        started.popen.kill()
        started.ended()
        assert_gone(below)


def test_killing_a_gateway_whose_engine_ignores_sigterm_leaves_no_process(tmp_path: Path) -> None:
    with process(tmp_path, "--ignore-sigterm", PREHEAT_STOP_SECONDS="0.2") as started:
        started.until_ready()
        below = family(started.popen.pid)
        started.popen.kill()
        started.ended()
        assert_gone(below)


def test_an_engine_that_dies_at_start_ends_the_gateway_with_its_cause(tmp_path: Path) -> None:
    with process(tmp_path, "--crash-at-start") as started:
        assert started.ended() == 1
        error = started.said.partition("preheat: ")[2]
        assert "the engine died at start" in error
        assert "engine | ValueError: No available memory for the cache blocks." in error
        assert "Traceback" not in error


def test_who_waits_for_an_engine_that_never_comes_is_told_at_once(tmp_path: Path) -> None:
    with process(tmp_path, "--ready-after", "600", PREHEAT_START_SECONDS="3") as started:
        headers = {"x-request-timeout": "600"}
        answer = httpx.post(f"{started.url}/v1/completions", json={}, headers=headers, timeout=40)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        assert started.ended() == 1


def test_a_taken_port_is_refused_before_the_engine_is_started(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken, process(tmp_path, PORT=str(port(taken))) as started:
        assert started.ended() == 1
        assert f"cannot listen on 127.0.0.1:{port(taken)}: Address already in use" in started.said
        assert "hint: take another: PORT=8001" in started.said
        assert "engine |" not in started.said


def test_a_socket_folder_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with process(tmp_path, TMPDIR=str(deep)) as started:
        assert started.ended() == 1
        assert "at most 107 are possible" in started.said
        assert "hint: set TMPDIR to a shorter folder" in started.said


def port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_json_logs_are_one_object_a_line_and_the_engines_own_are_labelled(tmp_path: Path) -> None:
    env = {"PREHEAT_LOG_FORMAT": "json", "VLLM_ANYTHING": "1"}
    with process(tmp_path, **env) as started:
        started.until_ready()
        httpx.get(f"{started.url}/v1/models", headers={"x-request-id": "mine"})
        started.popen.send_signal(signal.SIGTERM)
        assert started.ended() == 0
        records = [json.loads(line) for line in started.said.splitlines()]
        assert all({"time", "level", "logger", "message"} <= set(record) for record in records)
        assert any(record["logger"] == "engine" for record in records)
        assert any(record.get("request_id") == "mine" for record in records)
        hidden = "not passed to the engine: VLLM_ANYTHING"
        assert any(record["message"] == hidden for record in records)


def test_which_compile_cache_is_used_is_told_in_the_log_and_at_variant(tmp_path: Path) -> None:
    with process(tmp_path) as started:
        started.until_said("compile cache: none used, starting cold: no baked root")
        started.until_ready()
        cache = httpx.get(f"{started.url}/variant").json()["cache"]
        root = cache.pop("root")
        assert root.endswith("/baked/here/tiny/fake")
        assert cache == {"policy": "prefer", "used": False, "reasons": [f"no baked root {root}"]}


def test_the_address_is_told_so_that_it_can_be_opened() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert run.url(listener) == f"http://127.0.0.1:{port(listener)}"
    try:
        listener = bind("::1", 0)
    except run.PreflightError:
        pytest.skip("no IPv6 loopback here")
    with listener:
        assert run.url(listener) == f"http://[::1]:{port(listener)}"
