"""Which image a word means: an image holds one model, and that is part of its tag."""

import shutil

import pytest

from bake import current
from bake.image import __main__ as command_line
from bake.image import weights
from serve import __version__
from serve.errors import ConfigError
from serve.model import find_model, load_model
from serve.settings import REPOSITORY

HEADS = "default of target cpu for variants with an MTP head, of which there are: seq8-best"


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
    wanted = command_line._wanted(said("build"), ("baseline", "seq8", "seq8-best"))
    assert (wanted.model, wanted.why) == ("tiny", HEADS)
    assert wanted.variants == ("baseline", "seq8", "seq8-best")
    assert set(wanted.weights) == set(wanted.variants)
    assert wanted.own == wanted.weights["baseline"] == wanted.weights["seq8"] == "tiny"


@pytest.fixture
def pruned(monkeypatch, tmp_path):
    """A checkout's weights: the model, and what is taken for it pruned."""
    folder = tmp_path / "derived/tiny/v8192"
    shutil.copytree(REPOSITORY / "weights/tiny", folder)
    source = find_model("tiny", REPOSITORY / "experiments").model_copy(
        update={"path": tmp_path / "tiny"}
    )
    shutil.copytree(folder, source.path)
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    monkeypatch.setattr(command_line, "find_model", lambda *_: source)
    monkeypatch.setenv("PREHEAT_DERIVED_ROOT", str(tmp_path / "derived"))
    return source, folder


def test_an_image_holds_each_folder_that_its_variants_serve_once(said, pruned, monkeypatch):
    monkeypatch.setattr(current, "is_current", lambda _: True)
    source, _ = pruned
    wanted = command_line._wanted(
        said("build", "--model", "tiny"), ("seq8", "baseline", "seq8-v64k")
    )
    own = "derived/tiny/v8192"
    assert wanted.weights == {"seq8": "tiny", "baseline": "tiny", "seq8-v64k": own}
    size = load_model(source).weight_bytes
    assert wanted.weight_bytes == 2 * size


def test_a_build_refuses_weights_that_were_made_of_others_and_says_what_makes_them(said, pruned):
    _, folder = pruned
    with pytest.raises(ConfigError) as refused:
        command_line._wanted(said("build", "--model", "tiny"), ("seq8-v64k",))
    assert refused.value.what.startswith(f"{folder}: made of other weights or by other steps")
    assert refused.value.hint == "make it anew: preheat bake derive seq8-v64k --model tiny"
    # Of the model as it is, nothing can be stale.
    assert command_line._wanted(said("build", "--model", "tiny"), ("seq8",)).own == "tiny"


def test_weights_that_a_variant_makes_are_asked_for_before_anything_is_built(said, pruned):
    with pytest.raises(ConfigError, match=r"no folder .*/awq-w4a16-mlp_g32") as refused:
        command_line._wanted(said("build", "--model", "tiny"), ("awq",))
    assert refused.value.hint == "fetch it: preheat bake derive awq --model tiny"
