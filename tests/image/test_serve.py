"""``preheat image run``, which is what `make serve` does where there is an image."""

import shutil
import signal
import time
import urllib.error
import urllib.request

import pytest
from openai import OpenAI

from scripts.served import free_port
from tests.image.appliances import START_SECONDS
from tests.image.checkouts import HERE, VARIANT

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def docker_command() -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker command here")


def test_it_serves_on_the_port_until_a_sigterm_and_leaves_no_container(client, image):
    before = {one.id for one in client.containers.list(all=True, filters={"ancestor": image})}
    port = free_port()
    words = ("image", "run", VARIANT, "--port", str(port), "--image", image)
    process = HERE.start(*words, PREHEAT_LOG_FORMAT="json")
    try:
        until_ready(port)
        url = f"http://127.0.0.1:{port}/v1"
        with OpenAI(base_url=url, api_key="unused", max_retries=0) as openai:
            talk = [{"role": "user", "content": "What is the capital of France?"}]
            answer = openai.chat.completions.create(model="tiny", messages=talk, max_tokens=16)
        assert answer.usage.completion_tokens > 0
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0, err
    told = err.splitlines()[0]
    assert told.startswith(
        "preheat: docker run --rm --pull never --read-only --tmpfs /tmp --cap-drop ALL "
    )
    assert told.endswith(f"--env PREHEAT_LOG_FORMAT {image}")
    # The setting has reached the gateway inside.
    assert '"message": "stopped"' in out + err
    after = {one.id for one in client.containers.list(all=True, filters={"ancestor": image})}
    assert after <= before


def until_ready(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError("not ready in time")
