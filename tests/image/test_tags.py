"""Which image a word means: an image holds one model, and that is part of its tag."""

import pytest

from bake.image import __main__ as command_line
from serve import __version__

ALL = "default of target cpu for variants with an MTP head, of which there are: seq8-best"


@pytest.fixture
def said(monkeypatch):
    for name in ("VARIANT", "MODEL", "IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TARGET", "cpu")

    def parsed(*words):
        return command_line.parser().parse_args(words)

    return parsed


@pytest.mark.parametrize(
    ("variants", "model"),
    [
        ((), "tiny"),
        (("baseline",), "smollm2-135m"),
        (("baseline", "seq8"), "smollm2-135m"),
        (("seq8", "seq8-best"), "tiny"),
    ],
)
def test_a_tag_is_that_of_a_build_of_the_same_variants(said, variants, model):
    tagged = command_line._tagged(said("verify", *variants), variants)
    assert tagged == f"preheat:{__version__}-cpu-{model}"


@pytest.mark.parametrize("words", [("layers",), ("export",)])
def test_a_model_that_is_named_or_a_whole_tag_goes_before(said, words):
    tagged = command_line._tagged(said(*words, "--model", "smollm2-135m"))
    assert tagged == f"preheat:{__version__}-cpu-smollm2-135m"
    assert command_line._tagged(said(*words, "--image", "mine:1")) == "mine:1"


def test_one_variant_with_drafts_decides_for_the_whole_image_and_that_is_said(said):
    wanted = command_line._wanted(said("build"), ())
    assert (wanted.model, wanted.why) == ("tiny", ALL)
    assert wanted.variants == ("baseline", "seq8", "seq8-best")
