"""One gateway for all tests that do it no harm: starting one for each would take minutes."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from serve import engine
from tests.serve.live import Gateway, gateway, until_ready


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared() -> AsyncIterator[Gateway]:
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder)) as started:
            await until_ready(started.engine)
            yield started


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart at once."""
    monkeypatch.setattr(engine, "FIRST_BACKOFF_SECONDS", 0.0)
