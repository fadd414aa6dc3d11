"""Containers for one thing: gone afterwards, also those of makers that were killed."""

import os
import platform
import subprocess

import pytest
from docker import DockerClient

from bake.errors import BakeError
from bake.image import container

pytestmark = pytest.mark.docker

PYTHON = "/opt/venv/bin/python"


def left(client: DockerClient, maker: str) -> list[str]:
    found = client.containers.list(all=True, filters={"label": f"{container.LABEL}={maker}"})
    return [str(one.id) for one in found]


@pytest.fixture
def dead() -> str:
    """A maker that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return f"{platform.node()}:{process.pid}"


def test_what_a_killed_maker_left_is_swept_and_nothing_else(client, image, dead):
    other = f"another-machine:{dead.rpartition(':')[2]}"
    ours = f"{platform.node()}:{os.getpid()}"
    made = [
        client.containers.create(image, labels={container.LABEL: maker})
        for maker in (dead, other, ours)
    ]
    try:
        container.sweep(client)
        assert [len(left(client, maker)) for maker in (dead, other, ours)] == [0, 1, 1]
    finally:
        for one in made[1:]:
            one.remove(force=True)


def test_one_is_removed_however_it_ends(client, image):
    maker = f"{platform.node()}:{os.getpid()}"

    def fail() -> None:
        with container.container(client, image):
            assert len(left(client, maker)) == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert left(client, maker) == []


def test_a_command_that_fails_is_told_by_its_own_words(client, image):
    words = [PYTHON, "-c", "import sys; sys.exit('preheat: it was so')"]
    with pytest.raises(BakeError, match=r"^it was so$"):
        container.output(client, image, words)


def test_an_image_or_a_path_that_is_not_there(client, image, tmp_path):
    with (
        pytest.raises(BakeError, match="no image preheat-test-none"),
        container.container(client, "preheat-test-none:1"),
    ):
        pass
    with (
        container.container(client, image) as one,
        pytest.raises(BakeError, match="the image has no /nowhere"),
    ):
        container.fetch(one, "/nowhere", tmp_path)
