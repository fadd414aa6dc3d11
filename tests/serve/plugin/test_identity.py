"""The device-identity shim against torch's and vLLM's own keys, checks and artifacts.

``stand_in`` says what is real in it: all but the driver's answers. The seed's shim is asked the
same questions and does not do what it was said to do; that stays here as the reason for ours.
"""

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import REPOSITORY, python

pytestmark = pytest.mark.torch

A40, A10G, A10, A6000 = SIBLINGS = ("NVIDIA A40", "NVIDIA A10G", "NVIDIA A10", "NVIDIA RTX A6000")
L4, RTX_3060 = STRANGERS = ("NVIDIA L4", "NVIDIA GeForce RTX 3060")
PAIRS = list(permutations(SIBLINGS, 2))
KEYS = (
    "system",
    "local cache",
    "fx details",
    "fx graph",
    "vllm inductor factors",
    "vllm compiler hash",
    "vllm AOT factors",
)


class StandIn:
    """Answers to all questions of this file, each asked once and together: imports are dear."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[str, object] = {}

    def ask_all(self, questions: list[dict]) -> None:
        env = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "PYTHONPATH": str(EARLY)}
        done = subprocess.run(
            [sys.executable, "-m", "tests.serve.plugin.stand_in"],
            input=json.dumps([self._placed(question) for question in questions]),
            env=env,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout.splitlines()[-1])
        self._answers = dict(zip(map(json.dumps, questions), answers, strict=True))
        self.log = done.stderr

    def __call__(self, ask: str, gpu: str, **more: object) -> object:
        return self._answers[json.dumps(question(ask, gpu, **more))]

    def _placed(self, question: dict) -> dict:
        return {**question, "path": str(self._folder / question.get("path", ""))}


def question(ask: str, gpu: str, **more: object) -> dict:
    return {"ask": ask, "gpu": gpu, **more}


def ours(presented: str) -> dict:
    return {"present_as": presented, "shim": "ours"}


def seed(presented: str) -> dict:
    return {"present_as": presented, "shim": "seed"}


def path_of(gpu: str, presented: str = "") -> str:
    return f"{gpu} as {presented}.aot"


OTHER_FIELDS = {
    "Python": {"python_version": "3.10.0"},
    "PyTorch": {"torch_version": "2.12.0"},
    "toolkit": {"toolkit_version": "12.8"},
    "Triton": {"triton_version": [3, 0]},
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    found = StandIn(tmp_path_factory.mktemp("stand-in"))
    every = (*SIBLINGS, *STRANGERS)
    found.ask_all(
        [
            *(question("keys", gpu) for gpu in every),
            *(question("keys", gpu, **ours(presented)) for gpu, presented in PAIRS),
            *(question("keys", gpu, **ours(A40)) for gpu in STRANGERS),
            *(question("keys", A40, **ours(gpu)) for gpu in (*STRANGERS, A40)),
            question("keys", L4, **ours(L4)),
            question("early", A10G, present_as=A40),
            question("blind", A10G, present_as=A40),
            *(question("save", gpu, path=path_of(gpu)) for gpu in every),
            question("save", A40, path=path_of(A40, A10G), **ours(A10G)),
            *(question("load", A10G, path=path_of(gpu)) for gpu in (A40, A10G)),
            *(
                question("load", gpu, path=path_of(presented), **ours(presented))
                for gpu, presented in PAIRS
            ),
            *(question("load", gpu, path=path_of(A40), **ours(A40)) for gpu in STRANGERS),
            *(question("load", A10G, path=path_of(gpu), **ours(A40)) for gpu in STRANGERS),
            question("load", A10G, path=path_of(A40, A10G)),
            question("load", A10G, path=path_of(A40, A10G), **ours(A10G)),
            *(
                question("check", A10G, there={"gpu_name": A40, **there}, swapped=way, **ours(A40))
                for there in ({}, *OTHER_FIELDS.values())
                for way in (False, True)
            ),
            *(question("keys", gpu, **seed(A40)) for gpu in (A40, A10G)),
            question("load", A10G, path=path_of(A40), **seed(A40)),
            question("bare_call", A10G, **seed(A40)),
            question("untouched", A10G, **ours(A40)),
            question("record", A10G, **ours(A40)),
            question("record", A10G),
            *(question("autotune", gpu) for gpu in (A40, A10G, L4)),
            *(question("best_config", gpu, path="winners") for gpu in (A40, A10G)),
            *(question("moved", A40, path="moved", shim=shim) for shim in ("", "winners")),
        ]
    )
    return found


@pytest.mark.parametrize("key", KEYS)
def test_without_a_shim_no_two_gpus_share_a_key(stand_in, key):
    answers = [stand_in("keys", gpu)[key] for gpu in (*SIBLINGS, *STRANGERS)]
    assert len({json.dumps(answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize(("gpu", "presented"), PAIRS)
def test_a_sibling_has_every_key_of_the_gpu_it_goes_by(stand_in, gpu, presented):
    assert stand_in("keys", gpu, **ours(presented)) == stand_in("keys", presented)


def test_the_hash_is_the_one_that_torch_itself_makes_of_that_name(stand_in):
    system = stand_in("keys", A10G, **ours(A40))["system"]
    assert system["device"]["name"] == A40
    assert system["hash"] == stand_in("keys", A40)["system"]["hash"]
    assert system["hash"] != stand_in("keys", A10G)["system"]["hash"]


@pytest.mark.parametrize(
    ("gpu", "presented", "reason"),
    [
        (L4, A40, "NVIDIA L4 has compute capability 8.9, NVIDIA A40 8.6"),
        (RTX_3060, A40, "NVIDIA GeForce RTX 3060 has 28 multiprocessors"),
        (A40, L4, "NVIDIA L4 is not on the allow-list"),
        (A40, RTX_3060, "NVIDIA GeForce RTX 3060 is not on the allow-list"),
    ],
)
def test_a_stranger_gets_no_key_at_all_and_the_reason(stand_in, gpu, presented, reason):
    refused = stand_in("keys", gpu, **ours(presented))["refused"]
    assert refused.startswith(f"PresentRefused: PREHEAT_PRESENT_AS={presented}: ")
    assert reason in refused


@pytest.mark.parametrize("gpu", [A40, L4])
def test_its_own_name_changes_nothing(stand_in, gpu):
    assert stand_in("keys", gpu, **ours(gpu)) == stand_in("keys", gpu)


def test_a_look_before_the_shim_is_forgotten_and_reported(stand_in):
    answer = dict(stand_in("early", A10G, present_as=A40))
    before = answer.pop("before")
    assert before == [
        stand_in("keys", A10G)["system"]["hash"],
        stand_in("keys", A10G)["local cache"],
    ]
    assert answer == stand_in("keys", A40)
    assert "had asked for this GPU's name before it was presented" in stand_in.log


def test_a_look_when_there_was_no_gpu_yet_does_not_decide(stand_in):
    assert stand_in("blind", A10G, present_as=A40) == A40


@pytest.mark.parametrize("gpu", SIBLINGS)
def test_an_artifact_records_the_true_name(stand_in, gpu):
    assert stand_in("save", gpu, path=path_of(gpu)) == gpu


def test_a_presented_name_is_not_recorded_in_an_artifact(stand_in):
    assert stand_in("save", A40, path=path_of(A40, A10G), **ours(A10G)) == A40


def test_torch_runs_its_own_artifact_and_refuses_the_siblings(stand_in):
    assert stand_in("load", A10G, path=path_of(A10G)) == [1.0, 3.0, 4.0]
    refused = stand_in("load", A10G, path=path_of(A40))["refused"]
    assert "Compile package was created with different GPU" in refused


@pytest.mark.parametrize(("gpu", "presented"), PAIRS)
def test_a_siblings_artifact_loads_and_runs(stand_in, gpu, presented):
    loaded = stand_in("load", gpu, path=path_of(presented), **ours(presented))
    assert loaded == [1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("gpu", "baked", "presented"),
    [(L4, A40, A40), (RTX_3060, A40, A40), (A10G, L4, A40), (A10G, RTX_3060, A40)],
)
def test_a_strangers_artifact_is_refused_with_the_reason(stand_in, gpu, baked, presented):
    refused = stand_in("load", gpu, path=path_of(baked), **ours(presented))["refused"]
    assert refused.startswith(f"PresentRefused: artifact of {baked}, GPU {gpu}: ")


def test_a_bake_under_its_targets_name_needs_the_shim_on_the_target_too(stand_in):
    path = path_of(A40, A10G)
    assert "different GPU" in stand_in("load", A10G, path=path)["refused"]
    assert stand_in("load", A10G, path=path, **ours(A10G)) == [1.0, 3.0, 4.0]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("what", [None, *OTHER_FIELDS])
def test_torchs_other_checks_stay(stand_in, what, swapped):
    """torch calls the check both ways round, artifact first and system first."""
    there = {"gpu_name": A40, **OTHER_FIELDS.get(what, {})}
    said = stand_in("check", A10G, there=there, swapped=swapped, **ours(A40))
    assert said is None if what is None else f"different {what} version" in said["refused"]


def test_the_gpu_stays_what_it_is_and_is_not_asked_early(stand_in):
    assert stand_in("untouched", A10G, **ours(A40)) == {
        "asked": [],
        "initialised": False,
        "true": [A10G, 8, 6, 80, 22587 * 2**20],
    }


def test_true_and_presented_names_are_in_one_log_line_and_in_the_record(stand_in):
    assert f"preheat: GPU {A10G} is presented to Inductor as {A40}" in stand_in.log
    facts = {"name": A10G, "capability": "8.6", "multiprocessors": 80}
    assert stand_in("record", A10G, **ours(A40)) == {**facts, "presented": A40}
    assert stand_in("record", A10G) == {**facts, "presented": A10G}


@pytest.mark.parametrize("key", KEYS)
def test_the_seeds_shim_leaves_every_key_apart(stand_in, key):
    """It drops the name and keeps the hash made from it: a cache baked so never hits elsewhere."""
    baked, serving = (stand_in("keys", gpu, **seed(A40)) for gpu in (A40, A10G))
    assert baked[key] != serving[key]


def test_the_seeds_shim_hides_the_name_and_keeps_the_old_hash(stand_in):
    system = stand_in("keys", A10G, **seed(A40))["system"]
    assert system["device"] == {}
    assert system["hash"] == stand_in("keys", A10G)["system"]["hash"]


def test_the_seeds_shim_does_not_know_of_the_artifacts_check(stand_in):
    refused = stand_in("load", A10G, path=path_of(A40), **seed(A40))["refused"]
    assert "Compile package was created with different GPU" in refused


def test_the_seeds_shim_breaks_calls_that_name_no_device(stand_in):
    assert "TypeError" in stand_in("bare_call", A10G, **seed(A40))["refused"]


def test_tritons_timings_carry_no_name_so_a_sibling_takes_them_over(stand_in):
    assert stand_in("autotune", A40) is False
    assert stand_in("autotune", A10G) is True
    # The architecture they do carry.
    assert stand_in("autotune", L4) is False


def test_inductors_winners_carry_no_name_so_a_sibling_takes_them_over(stand_in):
    assert stand_in("best_config", A40, path="winners") is None
    assert stand_in("best_config", A10G, path="winners") == {"XBLOCK": 128}


def test_a_moved_cache_still_has_its_winners_looked_for_where_it_was_baked(stand_in):
    """Fails when ``winners`` is no longer needed: then delete the patch."""
    where = stand_in("moved", A40, path="moved", shim="")
    assert {Path(path).parts[-3] for path in where.values()} == {"baked"}


def test_with_the_patch_a_moved_cache_has_its_winners(stand_in):
    where = stand_in("moved", A40, path="moved", shim="winners")
    assert {Path(path).parts[-3] for path in where.values()} == {"here"}


def test_unset_it_imports_nothing_and_is_not_needed():
    done = python(
        "import sys; from serve.plugin import identity as i; print(i.needed(), *sys.modules)"
    )
    assert done.stdout.startswith("False ")
    assert "torch" not in done.stdout.split()


def test_a_build_without_cuda_refuses_at_once():
    code = (
        "import os; os.environ['PREHEAT_PRESENT_AS'] = 'NVIDIA A40'\n"
        "from serve.plugin import register; register()"
    )
    done = python(code, EARLY)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "PresentRefused: PREHEAT_PRESENT_AS=NVIDIA A40: this torch is built without CUDA\n"
    )
