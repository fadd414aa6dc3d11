"""Blobs and baked roots through an OCI layout: the same bytes, only what differs, or nothing."""

import json
import shutil
from dataclasses import replace

import pytest

from bake import tree
from bake.archive import Limits
from bake.errors import BakeError
from bake.oci.carry import BAKED, BLOB, ROOT, Place, pull, push
from bake.oci.layout import BadLayout, Contents, Layout, Source
from bake.shipping import Terms
from bake.signing import keygen, sign
from blob.errors import BlobError
from blob.manifest import read
from blob.store import Store
from blob.verify import verify
from serve.signature import trusted_keys
from tests.bake.archives import NAME
from tests.bake.oci.digests import digest
from tests.blob import blobs
from tests.blob.blobs import content
from tests.serve.roots import baked

FILES = {"config.json": blobs.CONFIG, "tokenizer.json": b"{}" * 100}
OTHER = {**FILES, "generation_config.json": b'{"top_k":20}'}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two blobs of one model that differ in one file."""
    folder = tmp_path_factory.mktemp("here")
    blobs.packed(folder / "one", files=FILES)
    blobs.packed(folder / "other", files=OTHER)
    return folder


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "layout")


@pytest.fixture
def node(tmp_path):
    """A machine that serves: nothing is there yet."""
    root = tmp_path / "node"
    return Place(root, Store(root / "store"), root / "baked", Terms())


def names(place):
    """What lies where blobs do, less the store and locks, which stay."""
    listed = place.blobs.iterdir() if place.blobs.is_dir() else ()
    return sorted(p.name for p in listed if p.name != "store" and p.suffix != ".lock")


def blob_of(layout, layer):
    return layout.root / "blobs" / "sha256" / layer.sha256


def test_a_blob_arrives_as_it_was_and_is_proven(here, layout, node):
    put = push(here / "one", layout, "one")
    made = pull(layout, "one", node)
    assert made.folder == node.blobs / "one"
    assert content(made.folder) == content(here / "one")
    assert verify(made.folder, lambda *_: None) == []
    assert (made.kind, made.size) == (BLOB, put.size)
    assert made.fetched_bytes == put.new_bytes == put.size


def test_of_a_second_one_only_what_differs_is_carried_and_kept(here, layout, node):
    for name in ("one", "other"):
        put = push(here / name, layout, name)
        made = pull(layout, name, node)
    differ = [
        path
        for path, raw in content(here / "other").items()
        if content(here / "one").get(path) != raw
    ]
    assert "generation_config.json" in differ
    assert made.fetched_files == len(differ) < made.files
    assert made.fetched_bytes == sum((here / "other" / path).stat().st_size for path in differ)
    assert put.new_bytes == made.fetched_bytes
    shared = [node.blobs / name / "config.json" for name in ("one", "other")]
    assert len({path.stat().st_ino for path in shared}) == 1


def test_the_same_again_carries_nothing_and_has_the_samedigest(here, layout, node):
    first, again = (push(here / "one", layout, tag) for tag in ("one", "again"))
    assert (again.digest, again.new_bytes) == (first.digest, 0)
    pull(layout, "one", node)
    assert pull(layout, "again", node).fetched_bytes == 0
    assert layout.tags() == ["again", "one"]


def test_a_tag_moves_and_the_last_push_is_what_it_names(here, layout, node):
    push(here / "one", layout, "best")
    moved = push(here / "other", layout, "best")
    assert layout.descriptor("best").digest == moved.digest
    assert content(pull(layout, "best", node).folder) == content(here / "other")


def test_what_is_there_is_replaced_only_when_that_is_said(here, layout, node):
    push(here / "one", layout, "one")
    push(here / "other", layout, "other")
    pull(layout, "one", node, "served")
    with pytest.raises(BakeError, match="there is a blob already"):
        pull(layout, "other", node, "served")
    assert content(node.blobs / "served") == content(here / "one")
    forced = replace(node, terms=Terms(force=True))
    pull(layout, "other", forced, "served")
    assert content(node.blobs / "served") == content(here / "other")


def test_a_baked_root_arrives_as_it_was(layout, node, tmp_path):
    root = baked(tmp_path / "here" / NAME)
    tree.seal(root)
    put = push(root, layout, "cache")
    made = pull(layout, "cache", node)
    assert (made.kind, made.folder) == (BAKED, node.baked / NAME)
    assert content(made.folder) == content(root)
    # The archive is the same for the same root.
    assert push(root, Layout(tmp_path / "second"), "cache").digest == put.digest


def test_a_root_that_no_trusted_key_signed_is_not_let_in(layout, node, tmp_path):
    root = baked(tmp_path / "here" / NAME)
    secret, public = keygen(tmp_path / "keys")
    strict = replace(node, terms=Terms(keys=trusted_keys(str(public))))
    push(root, layout, "cache")
    with pytest.raises(BakeError, match="not imported"):
        pull(layout, "cache", strict)
    assert not (node.baked / NAME).exists()
    sign(root, secret)
    push(root, layout, "cache")
    assert pull(layout, "cache", strict).folder == node.baked / NAME


class TestDamage:
    """Nothing of it gets a name, and the store keeps nothing that is not what it is called."""

    @pytest.fixture(autouse=True)
    def nothing_stays(self, node):
        yield
        assert names(node) == []
        for path in node.store.root.glob("*/*") if node.store.root.is_dir() else ():
            assert not path.name.startswith(".arriving-")

    def test_a_flipped_bit_in_the_layout(self, here, layout, node):
        push(here / "one", layout, "one")
        layer = max(layout.artifact("one").layers, key=lambda one: one.size)
        raw = bytearray(blob_of(layout, layer).read_bytes())
        raw[len(raw) // 2] ^= 1
        blob_of(layout, layer).chmod(0o644)
        blob_of(layout, layer).write_bytes(raw)
        with pytest.raises(BadLayout, match="sha256 differs from its name"):
            pull(layout, "one", node)
        # And a push sees it, too.
        assert push(here / "one", layout, "one").new_bytes == layer.size
        assert pull(layout, "one", node, "whole").fetched_bytes > 0
        shutil.rmtree(node.blobs / "whole")

    @pytest.mark.parametrize("part", [0, 0.5])
    def test_a_layer_that_was_cut_off(self, here, layout, node, part):
        push(here / "one", layout, "one")
        path = blob_of(layout, layout.artifact("one").layers[-1])
        raw = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(raw[: int(len(raw) * part)])
        with pytest.raises(BadLayout, match=r"expected .* bytes, got"):
            pull(layout, "one", node)

    def test_a_layer_that_is_gone(self, here, layout, node):
        push(here / "one", layout, "one")
        blob_of(layout, layout.artifact("one").layers[0]).unlink()
        with pytest.raises(BadLayout, match="cannot be read"):
            pull(layout, "one", node)

    def test_a_layer_that_leads_elsewhere(self, here, layout, node, tmp_path):
        push(here / "one", layout, "one")
        path = blob_of(layout, layout.artifact("one").layers[0])
        path.rename(tmp_path / "secret")
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(BadLayout, match="cannot be read"):
            pull(layout, "one", node)

    def test_files_that_make_no_blob(self, here, layout, node, tmp_path):
        """Each is what its digest says; together they are not what the blob's manifest lists."""
        sources = [
            Source(path, here / "one" / path, *digest(raw))
            for path, raw in content(here / "one").items()
            if path != "tokenizer.json"
        ]
        layout.put("less", Contents(BLOB, "x/y", sources), lambda _: None)
        with pytest.raises(BakeError, match=r"tokenizer\.json: not as the blob's own manifest"):
            pull(layout, "less", node)

    def test_what_is_refused_has_filled_no_store(self, here, layout, node, tmp_path):
        junk = tmp_path / "junk"
        junk.write_bytes(b"x" * 100_000)
        sources = [
            Source(path, here / "one" / path, *digest(raw))
            for path, raw in content(here / "one").items()
        ]
        more = [*sources, Source("junk", junk, *digest(junk.read_bytes()))]
        layout.put("more", Contents(BLOB, "x/y", more), lambda _: None)
        with pytest.raises(BakeError, match="junk: not as the blob's own manifest"):
            pull(layout, "more", node)
        assert [path.name for path in node.store.root.iterdir()] == ["lock"]

    def test_more_than_is_let_in(self, here, layout, node):
        push(here / "one", layout, "one")
        few = replace(node, terms=Terms(limits=Limits(total_bytes=100)))
        with pytest.raises(BakeError, match="at most 100 are let in"):
            pull(layout, "one", few)

    @pytest.mark.parametrize("name", ["../up", "/etc", "a//b"])
    def test_a_name_that_leads_elsewhere(self, here, layout, node, name):
        push(here / "one", layout, "one")
        with pytest.raises(BakeError, match="--name: "):
            pull(layout, "one", node, name)

    def test_a_baked_root_under_the_name_of_another(self, layout, node, tmp_path):
        root = baked(tmp_path / "here" / NAME)
        push(root, layout, "cache")
        (layer,) = layout.artifact("cache").layers
        packed = Source("root.tar.zst", blob_of(layout, layer), layer.sha256, layer.size)
        lying = Contents(BAKED, "x/y", [packed], {ROOT: "cpu/tiny/another"})
        layout.put("lying", lying, lambda _: None)
        with pytest.raises(BakeError, match="says that it is cpu/tiny/another"):
            pull(layout, "lying", node)
        assert not node.baked.exists()

    def test_a_type_that_is_not_ours(self, here, layout, node):
        raw = here / "one" / "config.json"
        source = Source("config.json", raw, *digest(raw.read_bytes()))
        layout.put("image", Contents("application/x", "x/y", [source]), lambda _: None)
        with pytest.raises(BakeError, match="is of type application/x") as caught:
            pull(layout, "image", node)
        assert "preheat bake push" in caught.value.hint

    def test_a_file_that_changes_while_it_is_pushed(self, here, layout, tmp_path):
        folder = tmp_path / "mine"
        shutil.copytree(here / "one", folder)
        stood = read(folder)
        config = next(one for one in stood.everything if one.path == "config.json")
        (folder / "config.json").chmod(0o644)
        (folder / "config.json").write_bytes(b"{ }" + b" " * (config.size - 3))
        source = Source(config.path, folder / config.path, config.sha256, config.size)
        with pytest.raises(BakeError, match="no longer what it was proven to be"):
            layout.put("one", Contents(BLOB, "x/y", [source]), lambda _: None)
        assert [p.name for p in (layout.root / "blobs/sha256").iterdir()] == []


def test_a_folder_that_is_neither_is_not_pushed(layout, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(BlobError):
        push(tmp_path / "mine", layout, "mine")
    assert not layout.root.exists()


def test_it_is_what_the_specification_says(here, layout):
    """Field by field: image-layout.md, image-index.md, manifest.md of version 1.1."""
    push(here / "one", layout, "one")
    assert json.loads((layout.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout.root / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    (described,) = index["manifests"]
    assert described["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert described["annotations"] == {"org.opencontainers.image.ref.name": "one"}
    raw = (layout.root / "blobs" / described["digest"].replace(":", "/")).read_bytes()
    assert len(raw) == described["size"]
    manifest = json.loads(raw)
    assert manifest["schemaVersion"] == 2
    assert manifest["artifactType"] == BLOB
    # Of an artifact without a configuration: the empty descriptor.
    empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": f"sha256:{empty}",
        "size": 2,
    }
    assert (layout.root / "blobs/sha256" / empty).read_bytes() == b"{}"
    for layer in manifest["layers"]:
        assert set(layer) == {"mediaType", "digest", "size", "annotations"}
    titles = {one["annotations"]["org.opencontainers.image.title"] for one in manifest["layers"]}
    assert titles == set(content(here / "one"))
