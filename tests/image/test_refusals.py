"""What the appliance is given that it cannot start with: one clear line, and an exit status."""

from typing import Any

import pytest

from serve.settings import REPOSITORY
from serve.variant import known_variants
from tests.image.appliances import PYTHON, Appliance, appliance
from tests.image.checkouts import HERE, ROOT, VARIANT
from tests.image.images import derived

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

BAKED = f"/opt/preheat/baked/{ROOT}"
WEIGHTS = "/opt/preheat/weights/tiny"
# What `preheat:` is followed by, and what must follow it further down.
CASES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "a variant that does not exist": (
        {"environment": {"VARIANT": "seq9"}},
        2,
        "no variant 'seq9' in /opt/preheat/experiments (did you mean seq8?)",
        f"hint: there are: {', '.join(known_variants(REPOSITORY / 'experiments'))}",
    ),
    "a variant that is not baked": (
        {"environment": {"PREHEAT_BAKED_ROOT": "/opt/preheat/nothing"}},
        1,
        f"PREHEAT_CACHE_POLICY=require, and /opt/preheat/nothing/{ROOT} cannot be used",
        f"hint: bake it into the image: make build VARIANTS={VARIANT}",
    ),
    "less memory than it needs": (
        {"mem_limit": "2g", "memswap_limit": "2g"},
        1,
        "too little memory: needed 3.3 GiB, free 1.",
        "hint: ",
    ),
    "no folder that can be written to": (
        {"tmpfs": {}},
        1,
        "no folder takes a temporary file: ",
        "docker run --tmpfs /tmp",
    ),
    "a /tmp that takes no file": (
        {"tmpfs": {"/tmp": "nr_inodes=1"}},
        1,
        "no folder takes a temporary file: ",
        "docker run --tmpfs /tmp",
    ),
    "a cold start, for which there is no compiler": (
        {"environment": {"PREHEAT_CACHE_POLICY": "off"}},
        1,
        "a start without a baked cache compiles, and there is no g++ on PATH",
        "hint: serve a variant that is baked",
    ),
    "an unknown setting": (
        {"environment": {"PREHEAT_DRIAN_SECONDS": "1"}},
        2,
        "environment: unknown key PREHEAT_DRIAN_SECONDS (did you mean PREHEAT_DRAIN_SECONDS?)",
        "",
    ),
    "a model that is not in it": (
        {"environment": {"MODEL": "huge"}},
        2,
        "no model 'huge'",
        "hint: ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_refuses_in_one_line_with_what_to_do(client, image, case):
    options, status, what, then = CASES[case]
    with appliance(client, image, **options) as one:
        check_refusal(one, status, what, then)


@pytest.mark.engine
def test_too_little_shared_memory_is_told_with_what_is_needed(client, image):
    with appliance(client, image, shm_size="1m") as one:
        check_refusal(one, 1, "the engine died at start", "Insufficient space in /dev/shm", logs=1)
        assert "--shm-size" in one.said.splitlines()[-1]


def check_refusal(one: Appliance, status: int, what: str, then: str, logs: int = 0) -> None:
    """``logs``: it was tried, so that lines of the engine's stand before."""
    assert one.end() == status, one.said
    said = one.said if logs else one.ours
    first = next(line for line in said.splitlines() if line.startswith("preheat: "))
    assert what in first, said
    assert then in said[said.index(first) :]
    if not logs:
        assert "Traceback" not in said


def as_root(line: str) -> tuple[str, ...]:
    return ("USER root", line, "USER 10001:10001")


class TestDamaged:
    """Layers that are not what was built, whoever changed them."""

    @pytest.mark.parametrize(
        ("name", "change", "says"),
        [
            ("identity.json", "sed -i s/tiny/tony/ $FILE", "differs"),
            ("answer.json", "rm $FILE", "missing"),
            ("vllm/more.py", "touch $FILE", "vllm/more.py"),
        ],
        ids=["one byte", "a file less", "a file more"],
    )
    def test_a_baked_file_that_changed_is_named_and_nothing_starts(
        self, client, image, name, change, says
    ):
        line = f"RUN {change.replace('$FILE', f'{BAKED}/{name}')}"
        with derived(client, image, *as_root(line)) as damaged:
            with appliance(client, damaged) as one:
                check_refusal(one, 1, "cannot be used", name)
                assert says in one.ours
                assert "hint: this image was changed or damaged" in one.ours
            self.check_verify_refuses(damaged, name)

    def test_the_largest_baked_file_with_one_byte_changed_is_named(self, client, image):
        change = (
            "import pathlib; file = max(pathlib.Path('$').rglob('*'), "
            "key=lambda p: p.is_file() and p.stat().st_size); data = bytearray(file.read_bytes()); "
            "data[len(data) // 2] ^= 1; file.chmod(0o644); file.write_bytes(data); "
            "file.chmod(0o444); print(file)"
        ).replace("$", BAKED)
        with derived(client, image, *as_root(f'RUN {PYTHON} -c "{change}"')) as damaged:
            with appliance(client, damaged) as one:
                check_refusal(one, 1, "cannot be used", "sha256 differs")
                named = next(line for line in one.ours.splitlines() if "sha256" in line)
            self.check_verify_refuses(damaged, named.split(":")[0].strip())

    def test_weights_that_changed_are_refused_before_anything_starts(self, client, image):
        line = f"RUN printf x | dd of={WEIGHTS}/model.safetensors bs=1 seek=999999 conv=notrunc"
        with derived(client, image, *as_root(line)) as damaged:
            self.check_verify_refuses(
                damaged, "the files of weights are not what was built (expected sha256:"
            )

    def test_code_that_changed_is_refused_before_anything_starts(self, client, image):
        with derived(client, image, *as_root("RUN echo >> /opt/preheat/serve/run.py")) as damaged:
            self.check_verify_refuses(
                damaged, "the files of code are not what was built (expected sha256:"
            )

    @pytest.mark.parametrize("user", ["root", "0", "0000:10001"])
    def test_an_image_that_would_run_as_root_is_refused(self, client, image, user):
        with derived(client, image, f"USER {user}") as damaged:
            self.check_verify_refuses(damaged, "would run as root")

    @pytest.mark.parametrize("name", ["code", "weights", f"baked.{VARIANT}"])
    def test_a_label_that_lies_is_refused(self, client, image, name):
        line = f"LABEL preheat.{name}=sha256:{'0' * 64}"
        with derived(client, image, line) as damaged:
            self.check_verify_refuses(damaged, "are not what was built (expected sha256:000")

    def test_a_label_never_becomes_a_path_of_this_machine(self, client, image, tmp_path):
        target = tmp_path / "mine"
        own = target / "tiny" / VARIANT / "file"
        own.parent.mkdir(parents=True)
        own.touch()
        with derived(client, image, f"LABEL preheat.target=../../../../..{target}") as hostile:
            out = str(tmp_path / "out.tar.zst")
            done = HERE.preheat("image", "export", "--image", hostile, "--out", out)
        assert done.returncode == 1
        assert "not an image of ours: label preheat.target" in done.stderr
        assert own.exists()

    @staticmethod
    def check_verify_refuses(image: str, naming: str) -> None:
        done = HERE.preheat("image", "verify", VARIANT, "--image", image)
        assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr
        told = done.stderr[done.stderr.index("preheat: ") :]
        assert naming in told
        assert "hint: " in told
        assert "Traceback" not in done.stderr
