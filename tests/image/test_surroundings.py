"""``preheat image`` where something is missing or wrong: one clear line, a hint, no traceback."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bake.errors import BakeError
from bake.image import daemon
from tests.conftest import NAME
from tests.image.checkouts import COMMAND, HERE, VARIANT, environment
from tests.image.images import tags

FACTS = daemon.Facts("Docker 26", ("runc",), ("bridge",), Path("/var/lib/docker"), 2 * daemon.GIB)
NOBODY = 65534


def refused(done: "subprocess.CompletedProcess[str]", status: int = 1) -> str:
    """What it said, once it is known to be said as it should be."""
    assert (done.returncode, done.stdout) == (status, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    told = done.stderr[done.stderr.index("preheat: ") :]
    assert "\nhint: " in told
    return told


class TestNoEngine:
    @pytest.mark.parametrize(
        "verb", [("build", VARIANT), ("verify",), ("export",), ("layers",)], ids=" ".join
    )
    def test_a_socket_that_is_not_there(self, tmp_path, verb):
        where = f"unix://{tmp_path}/none.sock"
        told = refused(HERE.preheat("image", *verb, DOCKER_HOST=where))
        assert told.startswith(f"preheat: no Docker engine answers at {where}: No such file")

    def test_a_socket_that_nobody_listens_on(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "left.sock"))
        where = f"unix://{tmp_path}/left.sock"
        told = refused(HERE.preheat("image", "build", VARIANT, DOCKER_HOST=where))
        assert told.startswith(f"preheat: no Docker engine answers at {where}: Connection refused")

    def test_a_port_that_is_closed(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            where = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            told = refused(HERE.preheat("image", "build", VARIANT, DOCKER_HOST=where))
        assert told.startswith(f"preheat: no Docker engine answers at {where}: Connection refused")

    @pytest.mark.parametrize("where", ["garbage://", "tcp://", "unix://", ":::", "tcp://a:b"])
    def test_words_that_name_none(self, where):
        told = refused(HERE.preheat("image", "verify", DOCKER_HOST=where))
        assert f" {where}: " in told.splitlines()[0]

    def test_one_that_does_not_let_us_in(self, tmp_path):
        path = tmp_path / "theirs.sock"
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(path))
            theirs.listen()
            path.chmod(0o600)
            less: list[str] = []
            if os.geteuid() == 0:
                # Root without the capability that makes it root: as anybody, to somebody's file.
                if shutil.which("setpriv") is None:
                    pytest.skip("no setpriv here")
                os.chown(path, NOBODY, NOBODY)
                less = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
            else:
                path.chmod(0)
            done = subprocess.run(
                [*less, sys.executable, "-c", COMMAND, "image", "verify"],
                cwd=HERE.path,
                env=environment({"DOCKER_HOST": f"unix://{path}"}),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        told = refused(done)
        assert told.startswith(
            f"preheat: no permission to talk to the Docker engine at unix://{path}"
        )
        assert "docker $USER" in told

    def test_serving_from_docker_is_refused_and_else_goes_on_without(self, tmp_path):
        nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
        told = refused(HERE.preheat("image", "runtime", VARIANT, RUNTIME="docker", **nowhere))
        assert told.startswith("preheat: RUNTIME=docker: no Docker engine answers")
        done = HERE.preheat("image", "runtime", VARIANT, **nowhere)
        assert (done.returncode, done.stdout) == (0, "local\n")
        assert "no Docker engine answers" in done.stderr


@pytest.mark.parametrize(
    ("words", "env", "what"),
    [
        (("build", "seq9"), {}, "no variant 'seq9'"),
        (("build", VARIANT), {"IMAGE": "Bad Name"}, "IMAGE='Bad Name' is no name of an image"),
        (("build", VARIANT), {"IMAGE": "preheat:mine"}, "IMAGE='preheat:mine'"),
        (("import", "FILE"), {"IMAGE": "a/b:c"}, "IMAGE='a/b:c'"),
        (("build", VARIANT), {"MODEL": "nothing"}, "no model 'nothing'"),
        (("build", VARIANT), {"TARGET": "h900"}, "no target 'h900'"),
        (("runtime", VARIANT), {"RUNTIME": "podman"}, "RUNTIME='podman': expected local or docker"),
        (("build", VARIANT), {"PORT": "x"}, "PORT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_wrong_words_are_told_before_an_engine_is_asked(tmp_path, words, env, what):
    (tmp_path / "FILE").touch()
    words = tuple(str(tmp_path / word) if word == "FILE" else word for word in words)
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    done = HERE.preheat("image", *words, **{**nowhere, **env})
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert what in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


def test_a_model_that_lies_elsewhere_is_told_where_to_put_it(tmp_path):
    shutil.copytree(HERE.path / "weights/tiny", tmp_path / "tiny")
    told = refused(HERE.preheat("image", "build", VARIANT, MODEL=str(tmp_path / "tiny")), 2)
    assert f"model tiny lies in {tmp_path / 'tiny'}" in told
    assert f"hint: move or copy it to {HERE.path / 'weights'}" in told


def test_the_runtime_is_local_when_that_is_said_and_no_engine_is_asked(tmp_path):
    nowhere = f"unix://{tmp_path}/none.sock"
    done = HERE.preheat("image", "runtime", "seq8", RUNTIME="local", DOCKER_HOST=nowhere)
    assert (done.returncode, done.stdout) == (0, "local\n")
    assert done.stderr == "preheat: runtime local (RUNTIME=local)\n"


def test_an_archive_that_is_not_there(tmp_path):
    told = refused(HERE.preheat("image", "import", str(tmp_path / "none.tar.zst")))
    assert told.startswith(f"preheat: {tmp_path}/none.tar.zst: no such file")


class TestFacts:
    def test_too_little_disk_is_refused_with_both_numbers(self):
        with pytest.raises(BakeError) as caught:
            daemon.check_room(FACTS, 9 * daemon.GIB)
        assert caught.value.what == (
            "too little disk for the image: needed 9.0 GiB in /var/lib/docker, free 2.0 GiB"
        )
        assert "docker system df" in caught.value.hint

    @pytest.mark.parametrize("free", [9 * daemon.GIB, None])
    def test_room_enough_or_nobody_knows(self, free):
        known = daemon.Facts("Docker 26", (), (), Path("/"), free)
        daemon.check_room(known, 9 * daemon.GIB)

    def test_an_engine_without_nvidia_is_no_place_for_a_gpu(self):
        with pytest.raises(BakeError, match="no NVIDIA runtime") as caught:
            daemon.check_device(FACTS, "cuda")
        assert "make build-import" in caught.value.hint
        daemon.check_device(FACTS, "cpu")

    def test_a_gpu_is_asked_for_where_one_is_needed(self):
        assert daemon.devices("cpu") == []
        (asked,) = daemon.devices("cuda")
        assert (asked["Count"], asked["Capabilities"]) == (1, [["gpu"]])


@pytest.mark.docker
class TestEngine:
    """With one that answers."""

    def test_its_facts_are_its_own(self, client):
        known = daemon.facts(client)
        assert known.name == f"Docker {client.version()['Version']}"
        assert "runc" in known.runtimes
        assert known.free is None or known.free > 0

    def test_a_target_with_a_gpu_is_refused_where_the_engine_gives_none(self, client):
        if "nvidia" in daemon.facts(client).runtimes:
            pytest.skip("the engine gives GPUs here")
        told = refused(HERE.preheat("image", "build", VARIANT, TARGET="a10g", IMAGE=NAME))
        assert "has no NVIDIA runtime, and this target needs the GPU" in told
        assert tags(client, f"{NAME}-x") == []

    @pytest.mark.timeout(300)
    def test_a_base_that_does_not_exist_is_named(self, client, checkout, tmp_path):
        own = checkout.copy(tmp_path / "own")
        base = "127.0.0.1:1/nothing:1"
        told = refused(own.preheat("image", "build", VARIANT, BASE_IMAGE=base, IMAGE=f"{NAME}-x"))
        assert base in told
        assert tags(client, f"{NAME}-x") == []

    @pytest.mark.parametrize("verb", ["verify", "export", "layers"])
    def test_an_image_that_is_not_there(self, client, tmp_path, verb):
        told = refused(HERE.preheat("image", verb, IMAGE=f"{NAME}-x"))
        assert told.startswith(f"preheat: no image {NAME}-x:")
        assert "hint: build it first: make build" in told

    def test_serving_from_an_image_that_is_not_there(self, client):
        words = ("image", "runtime", VARIANT)
        told = refused(HERE.preheat(*words, RUNTIME="docker", IMAGE=f"{NAME}-x"))
        assert told.startswith(f"preheat: RUNTIME=docker: no image {NAME}-x:")
        done = HERE.preheat(*words, IMAGE=f"{NAME}-x")
        assert (done.returncode, done.stdout) == (0, "local\n")

    def test_an_image_of_somebody_else(self, client):
        told = HERE.preheat("image", "verify", IMAGE="python:3.11-slim-bookworm")
        assert (told.returncode, told.stdout) == (1, "")
        assert "not an image of ours" in told.stderr
        assert "Traceback" not in told.stderr
