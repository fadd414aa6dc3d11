"""Which runtime serves, and the exact `docker run` that does."""

import dataclasses

import pytest

from bake.errors import BakeError
from bake.image.labels import Holds
from bake.image.run import Asked, Image, Local, argv, choose, parse, passed, unlike
from serve.errors import ConfigError

ASKED = Asked("seq8", "", "", "127.0.0.1", 8000)
DIGEST = f"sha256:{'0' * 64}"
HOLDS = Holds(
    "cpu",
    "cpu",
    "tiny",
    {"weights": DIGEST, "code": DIGEST},
    {"seq8": DIGEST, "seq8-best": DIGEST},
)
LABELS = HOLDS.labels()
HERE = Image("preheat:1", "cpu")


@pytest.mark.parametrize(
    ("word", "runtime"), [("", "auto"), ("auto", "auto"), ("local", "local"), ("docker", "docker")]
)
def test_a_runtime_is_one_of_three(word, runtime):
    assert parse(word) == runtime


def test_another_is_refused():
    with pytest.raises(ConfigError, match="RUNTIME='Docker': expected local or docker"):
        parse("Docker")


class TestChoose:
    def test_local_is_local_whatever_there_is(self):
        assert choose("local", "preheat:1", LABELS, "", ASKED) == Local("RUNTIME=local")

    @pytest.mark.parametrize("runtime", ["auto", "docker"])
    def test_an_image_that_is_what_was_asked_for_is_taken(self, runtime):
        assert choose(runtime, "preheat:1", LABELS, "", ASKED) == HERE

    def test_without_an_image_it_is_local_and_says_why(self):
        assert choose("auto", "preheat:1", None, "no engine", ASKED) == Local("no engine")

    def test_docker_without_an_image_is_refused(self):
        with pytest.raises(BakeError, match="RUNTIME=docker: no engine") as caught:
            choose("docker", "preheat:1", None, "no engine", ASKED)
        assert "make build" in caught.value.hint

    def test_an_image_of_other_weights_is_not_taken_and_it_says_what_mends_it(self):
        def weights(holds: Holds) -> str:
            assert holds == HOLDS
            return "the image holds other weights: make build MODEL=tiny"

        found = choose("auto", "preheat:1", LABELS, "", ASKED, weights)
        assert found == Local("the image holds other weights: make build MODEL=tiny")
        with pytest.raises(BakeError, match="RUNTIME=docker: the image holds other weights"):
            choose("docker", "preheat:1", LABELS, "", ASKED, weights)

    def test_docker_with_another_image_is_refused(self):
        asked = Asked("baseline", "", "", "127.0.0.1", 8000)
        with pytest.raises(BakeError, match="the image holds seq8, seq8-best, not baseline"):
            choose("docker", "preheat:1", LABELS, "", asked)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (ASKED, ""),
        (Asked("seq8", "tiny", "cpu", "", 1), ""),
        (Asked("seq9", "", "", "", 1), "the image holds seq8, seq8-best, not seq9"),
        (Asked("seq8", "big", "", "", 1), "the image holds model tiny, not big"),
        (Asked("seq8", "", "a10g", "", 1), "the image holds target cpu, not a10g"),
    ],
)
def test_how_an_image_is_unlike_what_was_asked_for(asked, why):
    assert unlike(HOLDS, asked) == why


def test_an_image_without_variants_says_so():
    empty = dataclasses.replace(HOLDS, baked={})
    assert unlike(empty, ASKED) == "the image holds no variant, not seq8"


def test_labels_of_somebody_else_are_a_reason_to_serve_from_here():
    found = choose("auto", "preheat:1", {"preheat.baked.seq8": DIGEST}, "", ASKED)
    assert found == Local("not an image of ours: label preheat.device is None")


class TestArgv:
    def test_it_may_write_nothing_but_tmp_and_has_no_privilege(self):
        words = argv(HERE, ASKED, bridged=True, passed=())
        said = " ".join(words)
        assert words[:3] == ["docker", "run", "--rm"]
        for option in (
            "--read-only --tmpfs /tmp",
            "--cap-drop ALL",
            "--security-opt no-new-privileges",
            "--env VARIANT=seq8",
            "--publish 127.0.0.1:8000:8000",
        ):
            assert option in said
        assert words[-1] == "preheat:1"
        assert "--gpus" not in words

    def test_an_ipv6_address_stands_in_brackets(self):
        asked = Asked("seq8", "", "", "::1", 8001)
        assert "[::1]:8001:8000" in argv(HERE, asked, bridged=True, passed=())

    def test_without_a_bridge_it_listens_on_this_machine_itself(self):
        said = " ".join(argv(HERE, ASKED, bridged=False, passed=()))
        assert "--network host --env PORT=8000 --env PREHEAT_HOST=127.0.0.1" in said
        assert "--publish" not in said

    def test_a_gpu_is_given_to_what_needs_one(self):
        words = argv(Image("preheat:1", "cuda"), ASKED, bridged=True, passed=())
        assert words[words.index("--gpus") + 1] == "1"

    def test_variables_go_by_name_so_that_no_value_shows(self):
        words = argv(HERE, ASKED, bridged=True, passed=("PREHEAT_LOG_FORMAT",))
        assert words[words.index("PREHEAT_LOG_FORMAT") - 1] == "--env"


class TestKeys:
    def test_a_port_that_nobody_else_can_reach_asks_for_none(self):
        assert "PREHEAT_NO_KEYS=true" in argv(HERE, ASKED, bridged=True, passed=())

    def test_one_that_others_can_reach_is_left_to_the_gateway_to_refuse(self):
        asked = dataclasses.replace(ASKED, host="0.0.0.0")
        assert "PREHEAT_NO_KEYS=true" not in argv(HERE, asked, bridged=True, passed=())

    def test_keys_that_are_passed_are_asked_for(self):
        words = argv(HERE, ASKED, bridged=True, passed=("PREHEAT_KEYS",))
        assert "PREHEAT_NO_KEYS=true" not in words

    def test_the_folder_of_a_file_of_keys_is_seen_inside(self, tmp_path):
        words = argv(HERE, ASKED, bridged=True, passed=(), keys_file=tmp_path / "keys.json")
        assert f"type=bind,src={tmp_path},dst=/run/preheat-keys,readonly" in words
        assert "PREHEAT_KEYS_FILE=/run/preheat-keys/keys.json" in words
        assert "PREHEAT_NO_KEYS=true" not in words


def test_settings_are_passed_and_paths_of_this_machine_are_not():
    environ = {
        "PREHEAT_LOG_FORMAT": "json",
        "PREHEAT_DRAIN_SECONDS": "5",
        "PREHEAT_HOST": "::",
        "PREHEAT_BAKED_ROOT": "/home/me",
        "PREHEAT_CACHE_ROOT": "/home/me",
        "PREHEAT_EXPERIMENTS": "/home/me",
        "VARIANT": "seq8",
        "HOME": "/root",
        "VLLM_USE_V1": "1",
    }
    assert passed(environ) == ["PREHEAT_DRAIN_SECONDS", "PREHEAT_LOG_FORMAT"]
