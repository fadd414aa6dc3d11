"""The router's objects are valid, and ask for nothing that the pinned router does not know."""

import subprocess

import kubernetes_validate
import pytest

from scripts.fleet.router import PROGRAM, switches
from tests.deploy.router.manifest import FOLDER, OBJECTS, container


@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: one["kind"])
def test_it_is_valid(one):
    kubernetes_validate.validate(one, "1.33", strict=True)


def test_the_image_is_the_pinned_release():
    (pinned,) = [
        line.partition("==")[2]
        for line in (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("vllm-router==")
    ]
    assert container()["image"] == f"preheat-router:{pinned}"


def test_it_may_do_no_more_than_the_appliance():
    told = container()["securityContext"]
    assert told["readOnlyRootFilesystem"]
    assert told["capabilities"] == {"drop": ["ALL"]}
    (role,) = [one for one in OBJECTS if one["kind"] == "Role"]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]


def test_the_router_knows_every_switch():
    if not PROGRAM.is_file():
        pytest.skip(f"{PROGRAM} is not there: make router")
    known = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout
    said = [*container()["args"], *switches("cache_aware", ["http://a"])]
    named = {word.partition("=")[0] for word in said if word.startswith("--")}
    assert {one for one in named if one not in known} == set()
