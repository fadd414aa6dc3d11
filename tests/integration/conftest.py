"""Real vLLM behind the real gateway, each variant started once for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.served import Served, start


def settings(variant: str, cache_root: Path) -> dict[str, str]:
    return {
        "VARIANT": variant,
        "MODEL": "tiny",
        "TARGET": "cpu",
        "PREHEAT_CACHE_ROOT": str(cache_root),
        # What somebody has baked in this repository is not for us.
        "PREHEAT_CACHE_POLICY": "off",
    }


@pytest.fixture(scope="session")
def seq8_best(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = start(settings("seq8-best", cache_root), tmp_path_factory.mktemp("best"))
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def seq8(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = start(settings("seq8", cache_root), tmp_path_factory.mktemp("seq8"))
    yield running
    assert running.stop() == 0
