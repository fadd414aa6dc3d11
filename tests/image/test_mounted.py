"""Weights that containers are given: which can be served, and where what is baked for them lies."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from bake.__main__ import main
from bake.errors import BakeError, Busy
from bake.image import mounted
from bake.image.mounted import Mounted
from serve.errors import ConfigError
from serve.settings import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
TINY = REPOSITORY / "weights" / "tiny"


def test_a_checkpoint_is_served_from_where_its_parent_is_mounted():
    given = mounted.check(TINY, "/models/", EXPERIMENTS)
    assert given.options == {
        "volumes": {str(TINY.parent): {"bind": "/models/", "mode": "ro"}},
        "environment": {"MODEL": "/models/tiny"},
    }
    assert given.root("cpu", "seq8") == TINY.parent / "baked" / "cpu" / "tiny" / "seq8"


def test_a_link_is_mounted_from_where_it_leads(tmp_path):
    (tmp_path / "latest").symlink_to(TINY)
    assert mounted.check(tmp_path / "latest", "/models", EXPERIMENTS) == Mounted(TINY, "/models")


@pytest.mark.parametrize(("codec", "is_served"), [("raw", True), ("q8_0", False)])
def test_of_blobs_only_what_needs_no_decoder_is_served(tmp_path, codec, is_served):
    blob = tmp_path / "blob"
    store = str(tmp_path / "store")
    assert main(["pack", str(TINY), "--codec", codec, "--out", str(blob), "--store", store]) == 0
    if is_served:
        assert mounted.check(blob, "/models", EXPERIMENTS).model == blob
    else:
        with pytest.raises(BakeError, match="a blob of q8_0") as error:
            mounted.check(blob, "/models", EXPERIMENTS)
        assert "--codec raw" in error.value.hint


@pytest.mark.parametrize("mount", ["blobs", "", "/opt/../etc"])
def test_a_place_in_containers_is_an_absolute_path(mount):
    with pytest.raises(ConfigError, match="expected an absolute path"):
        mounted.check(TINY, mount, EXPERIMENTS)


def test_what_is_no_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no folder"):
        mounted.check(tmp_path / "none", "/models", EXPERIMENTS)
    with pytest.raises(ConfigError, match=r"config\.json"):
        mounted.check(tmp_path, "/models", EXPERIMENTS)


def test_what_is_no_baked_root_is_not_replaced(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").touch()
    with ExitStack() as held:
        mounted.take(tmp_path / "new", held)
        with pytest.raises(Busy):
            mounted.take(tmp_path / "new", held)
        with pytest.raises(BakeError, match="mine: is no baked root"):
            mounted.take(tmp_path / "mine", held)
        with pytest.raises(BakeError, match="file: File exists"):
            mounted.take(tmp_path / "file" / "seq8", held)
