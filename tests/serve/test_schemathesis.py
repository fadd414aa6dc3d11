"""Whatever can be made of our OpenAPI document, asked of a live gateway: never 500, in its shape.

Schemathesis makes requests that fit the document and requests that do not. What of a body is right
is the engine's to say, so that the gateway refuses too little is not looked for but on its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import pytest
import schemathesis
from schemathesis import Case
from schemathesis.config import SchemathesisConfig

from scripts.gateway.stage import gone, key_file, started
from serve.openapi import document
from serve.routes import OPEN
from tests.serve.live import wait_for

CONFIG = {
    "seed": 8,
    "generation": {
        "mode": "all",
        "max-examples": 10,
        "deterministic": True,
        "database": "none",
    },
    # What is in a body is the engine's to refuse.
    "checks": {"negative_data_rejection": {"enabled": False}},
    "operations": [
        {
            "include-path": "/admin/variant",
            "checks": {
                "negative_data_rejection": {"enabled": True},
                # A variant of any name fits the document, and there is but one.
                "positive_data_acceptance": {"enabled": False},
            },
        }
    ],
}
OURS = schemathesis.openapi.from_dict(document(), config=SchemathesisConfig.from_dict(CONFIG))
SECONDS = 20
OPEN_PATHS = {route.path for route in OPEN}


@dataclass(frozen=True)
class Live:
    url: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("gateway")
    key = key_file(folder / "keys.json", admin=True)
    made = started(folder, settings={"PREHEAT_KEYS_FILE": str(folder / "keys.json")})
    url = f"http://127.0.0.1:{made.port}"
    try:
        wait_for(lambda: _ready(url), "ready")
        yield Live(url, key)
    finally:
        gone(made.process)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == HTTPStatus.OK
    except httpx.TransportError:
        return False


@OURS.parametrize()
def test_every_answer_has_the_shape_that_is_declared(case: Case, live: Live) -> None:
    case.call_and_validate(base_url=live.url, headers=live.headers, timeout=SECONDS)


@OURS.parametrize()
def test_without_a_key_nothing_else_of_a_request_matters(case: Case, live: Live) -> None:
    answer = case.call(base_url=live.url, timeout=SECONDS)
    assert answer.status_code in (401, 405) or case.path in OPEN_PATHS


def test_the_document_that_is_served_is_openapi(live: Live) -> None:
    served = httpx.get(f"{live.url}/openapi.json", headers=live.headers).json()
    assert served == document()
    schemathesis.openapi.from_dict(served).validate()
