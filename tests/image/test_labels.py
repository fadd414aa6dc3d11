"""Labels are read with care: anybody can write them, and they become parts of paths."""

import pytest

from bake.image.labels import Holds, parse

DIGEST = f"sha256:{'a' * 64}"
FOLDERS = {"weights": DIGEST, "code": DIGEST}
HOLDS = Holds("cpu", "cpu", "tiny", FOLDERS, {"seq8": DIGEST}, {"seq8": DIGEST})


def test_what_is_written_is_read():
    assert parse(HOLDS.labels() | {"org.opencontainers.image.title": "preheat"}) == HOLDS
    assert HOLDS.variants == ["seq8"]
    assert HOLDS.root("seq8") == "cpu/tiny/seq8"


def test_an_image_may_hold_no_variant():
    assert parse({n: v for n, v in HOLDS.labels().items() if "baked" not in n}).variants == []


@pytest.mark.parametrize("labels", [None, {}, {"title": "x"}])
def test_an_image_of_somebody_else_is_none_of_ours(labels):
    assert "not an image of ours" in parse(labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preheat.target", "../../../../etc"),
        ("preheat.target", "/etc"),
        ("preheat.target", ""),
        ("preheat.model", "a/b"),
        ("preheat.model", "tiny\n"),
        ("preheat.device", "tpu"),
        ("preheat.baked.seq8", "sha256:00"),
        ("preheat.baked...", DIGEST),
        ("preheat.served.seq8", "sha256:00"),
        ("preheat.baked.a/b", DIGEST),
        ("preheat.weights", ""),
        ("preheat.code", DIGEST.upper()),
    ],
)
def test_one_odd_label_is_named(name, value):
    said = parse(HOLDS.labels() | {name: value})
    assert said.startswith("not an image of ours: label ")
    assert name in said
