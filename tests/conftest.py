"""The appliance's image, built once for all tests that want one, and the engine it is in."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from docker import DockerClient
from hypothesis import settings

from bake.errors import BakeError
from bake.image import daemon
from tests.image.checkouts import Checkout, fresh
from tests.image.images import Built, build, forget

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

NAME = f"preheat-test-{os.getpid()}"


# The first test that wants the appliance builds it, from nothing on a bare machine.
BUILD_SECONDS = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"image", "built"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first: of all engines of a variant and a model, whichever starts first compiles."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def client() -> Iterator[DockerClient]:
    """Whichever engine answers. Where none does: skipped, or failed if REQUIRE_DOCKER is set."""
    with ExitStack() as held:
        try:
            answers = held.enter_context(daemon.engine())
        except BakeError as error:
            if os.environ.get("REQUIRE_DOCKER"):
                pytest.fail(f"REQUIRE_DOCKER is set: {error.what}", pytrace=False)
            pytest.skip(error.what)
        yield answers


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """This checkout as it is now; copied before it is changed."""
    return fresh(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def built(client: DockerClient, checkout: Checkout) -> Iterator[Built]:
    """What ``preheat image build`` made of ``checkout``."""
    try:
        yield build(checkout, NAME)
    finally:
        forget(client, NAME)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    """The appliance: TEST_IMAGE names one that is ready, or one is built."""
    if ready := os.environ.get("TEST_IMAGE"):
        request.getfixturevalue("client")
        return ready
    made: Built = request.getfixturevalue("built")
    return made.tag
