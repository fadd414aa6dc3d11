"""A layout of anybody's: what is not in its form is told, and never read, written or followed."""

import copy
import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bake.errors import BakeError
from bake.oci.layout import BadLayout, Contents, Layout, Source
from tests.bake.oci.digests import digest

RAW = b"weights" * 1000


@pytest.fixture
def layout(tmp_path):
    """With one tag of one file."""
    made = Layout(tmp_path / "layout")
    put(made, "one", tmp_path)
    return made


def put(layout, tag, folder, raw=RAW, title="a/file"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{tag}.source"
    path.write_bytes(raw)
    source = Source(title, path, *digest(raw))
    return layout.put(tag, Contents("application/x", "x/y", [source]), lambda _: None)


def manifest_of(layout, tag):
    sha256 = layout.descriptor(tag).sha256
    return json.loads((layout.root / "blobs/sha256" / sha256).read_bytes())


def lie(layout, manifest):
    """Let the tag name another manifest, as whoever writes the whole layout can."""
    raw = json.dumps(manifest).encode()
    sha256, size = digest(raw)
    (layout.root / "blobs/sha256" / sha256).write_bytes(raw)
    index = json.loads((layout.root / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": f"sha256:{sha256}", "size": size}
    (layout.root / "index.json").write_text(json.dumps(index))


def test_it_can_be_read_back(layout):
    artifact = layout.artifact("one")
    (layer,) = artifact.layers
    assert b"".join(layout.read(layer, lambda _: None)) == RAW
    assert artifact.size == len(RAW)


def test_fields_that_nobody_knows_are_passed_over(layout):
    told = manifest_of(layout, "one") | {"subject": {"mediaType": "x"}, "new": 1}
    lie(layout, told)
    assert layout.artifact("one").size == len(RAW)


@pytest.mark.parametrize(
    "title",
    ["../up", "/etc/passwd", "a//b", "", "a\x1b[2Jb", "a\\b", ".", "x" * 2000, None],
)
def test_a_title_that_is_no_plain_path_is_refused(layout, title):
    told = manifest_of(layout, "one")
    told["layers"][0]["annotations"] = (
        {} if title is None else {"org.opencontainers.image.title": title}
    )
    lie(layout, told)
    with pytest.raises(BadLayout, match=r"layers\.0"):
        layout.artifact("one")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("digest", "sha256:../../../etc/passwd"),
        ("digest", "sha256:" + "A" * 64),
        ("digest", "md5:" + "0" * 32),
        ("digest", 7),
        ("size", -1),
        ("size", 2**60),
        ("size", "many"),
        ("mediaType", "x" * 300),
    ],
)
def test_a_descriptor_that_cannot_be_is_refused(layout, field, value):
    told = manifest_of(layout, "one")
    told["layers"][0][field] = value
    lie(layout, told)
    with pytest.raises(BadLayout, match=r"layers\.0"):
        layout.artifact("one")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"manifests":[]}',
        b'{"schemaVersion":1}',
        b"\xff",
        b"[" * 100_000,
        b'{"schemaVersion":2,"schemaVersion":2}',
        b'{"schemaVersion":2,"manifests":[7]}',
    ],
)
def test_an_index_that_is_none_is_told(layout, raw):
    (layout.root / "index.json").write_bytes(raw)
    with pytest.raises(BadLayout, match=r"index\.json"):
        layout.tags()


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"imageLayoutVersion":"2.0.0"}', b"[]", b"nothing"])
def test_another_version_is_told(layout, raw):
    (layout.root / "oci-layout").write_bytes(raw)
    with pytest.raises(BadLayout, match="oci-layout"):
        layout.tags()


def test_what_is_too_large_is_not_read(layout):
    (layout.root / "index.json").write_bytes(b" " * (5 * 2**20))
    with pytest.raises(BadLayout, match="larger than"):
        layout.tags()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "x",
                "digest": "sha256:" + "0" * 64,
                "size": 2**40,
                "annotations": {"org.opencontainers.image.ref.name": "one"},
            }
        ],
    }
    (layout.root / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadLayout, match="at most"):
        layout.artifact("one")


def test_a_folder_that_is_no_layout_is_told_and_not_written_to(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    with pytest.raises(BadLayout, match="no OCI layout"):
        Layout(mine).tags()
    with pytest.raises(BakeError, match=r"holds thesis\.txt"):
        put(Layout(mine), "one", tmp_path / "sources")
    with pytest.raises(BadLayout) as caught:
        Layout(tmp_path / "nowhere").tags()
    assert "preheat bake push" in caught.value.hint


def test_an_unknown_tag_is_told_with_those_there_are(layout):
    with pytest.raises(BadLayout, match="no tag two") as caught:
        layout.artifact("two")
    assert caught.value.hint == "there are: one"


OTHERS = {
    "schemaVersion": 2,
    "annotations": {"theirs": "yes"},
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": "sha512:" + "0" * 128,
            "size": 7,
            "platform": {"os": "linux", "architecture": "arm64"},
            "annotations": {"org.opencontainers.image.ref.name": "theirs"},
        },
        {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 7, "artifactType": "theirs"},
        {"annotations": {"org.opencontainers.image.ref.name": "\x1b[2Jevil\n"}},
    ],
}


def test_what_others_wrote_stays_as_they_wrote_it(tmp_path):
    shared = Layout(tmp_path / "shared")
    put(shared, "one", tmp_path)
    (shared.root / "index.json").write_text(json.dumps(OTHERS))
    put(shared, "two", tmp_path)
    index = json.loads((shared.root / "index.json").read_bytes())
    assert index["annotations"] == OTHERS["annotations"]
    assert index["manifests"][:-1] == OTHERS["manifests"]
    # What no registry would take for a tag is none here.
    assert shared.tags() == ["theirs", "two"]
    assert shared.artifact("two").size == len(RAW)
    with pytest.raises(BadLayout, match="theirs: digest"):
        shared.artifact("theirs")


@pytest.mark.parametrize("left", [["index.json"], [".index.json.7"], ["blobs"], []])
def test_what_a_killed_first_push_left_is_gone_on_with(tmp_path, left):
    root = tmp_path / "layout"
    root.mkdir()
    for name in left:
        if name == "blobs":
            (root / name).mkdir()
        else:
            (root / name).write_text('{"schemaVersion":2,"manifests":[]}')
    put(Layout(root), "one", tmp_path / "sources")
    assert Layout(root).tags() == ["one"]


def test_two_that_push_at_once_both_are_named(tmp_path):
    layout = Layout(tmp_path / "new")

    def many(who):
        for turn in range(10):
            put(layout, f"{who}-{turn}", tmp_path / who, f"{who}{turn}".encode())

    threads = [threading.Thread(target=many, args=(who,)) for who in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layout.tags()) == 30


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_a_manifest_with_anything_in_any_place_is_read_or_refused(layout, data):
    told = copy.deepcopy(manifest_of(layout, "one"))
    at = told
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            at[key] = data.draw(VALUES)
            break
        at = at[key]
    saved = (layout.root / "index.json").read_bytes()
    try:
        lie(layout, told)
        layout.artifact("one")
    except BadLayout:
        pass
    finally:
        (layout.root / "index.json").write_bytes(saved)
