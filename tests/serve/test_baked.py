import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bake import tree
from bake.signing import keygen, sign
from serve import baked as module
from serve import identity, manifest
from serve import plan as planning
from serve.baked import (
    Absent,
    Baked,
    CacheRefused,
    Cold,
    Found,
    Sound,
    Unfit,
    baked_beside,
    choose,
    inspect,
    next_step,
    retuned,
    settle,
    tell,
)
from serve.errors import ConfigError, ServeError
from serve.identity import Accepted, Reason, Rejected
from serve.plan import Cache, Plan, make_plan
from serve.settings import Settings, read_settings
from tests.serve.checkpoints import checkpoint
from tests.serve.roots import FILES, fill

SOUND = Sound(Path("/"), identity=None, key=None, files=1, total_bytes=1, seconds=0.1)  # type: ignore[arg-type]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(planning, "probe_gpu", lambda: None)
    weights = checkpoint(tmp_path / "weights", "a")
    return read_settings(
        {
            "VARIANT": "baseline",
            "MODEL": str(weights),
            "TARGET": "cpu",
            "PREHEAT_BAKED_ROOT": str(tmp_path / "baked"),
            "PREHEAT_CACHE_ROOT": str(tmp_path / "cold"),
        }
    )


def planned(settings: Settings) -> Plan:
    return make_plan(settings, Path("/venv/bin/python"), Path("/run/engine.sock"))


@pytest.fixture
def root(settings: Settings) -> Path:
    """A root as a bake for these settings, on this machine, leaves it."""
    plan = planned(settings)
    root = settings.baked_root / "cpu" / "weights" / "baseline"
    fill(root, FILES | {identity.FILE: identity.dump(identity.here(plan))})
    manifest.write(root)
    tree.seal(root)
    return root


def with_policy(settings: Settings, policy: str) -> Settings:
    return settings.model_copy(update={"cache_policy": policy})


def cold_reasons(settings: Settings) -> tuple[str, ...]:
    """Why a start by these settings is cold; it must be, and must be the start of before."""
    plan = planned(settings)
    settled = settle(plan, settings)
    assert settled.command == plan.command
    assert not settled.cache.used
    assert settled.fallback is None
    return settled.cache.reasons


def test_a_sound_root_that_fits_is_where_the_engine_starts_from(
    settings: Settings, root: Path
) -> None:
    plan = planned(settings)
    settled = settle(plan, settings)
    env = settled.command.env
    assert settled.command.argv == plan.command.argv
    assert env["VLLM_CACHE_ROOT"] == str(root / "vllm")
    assert env["TORCHINDUCTOR_CACHE_DIR"] == str(root / "inductor")
    assert env["VLLM_FORCE_AOT_LOAD"] == "1"
    assert "PREHEAT_PRESENT_AS" not in env
    assert settled.fallback == plan.command
    assert "VLLM_FORCE_AOT_LOAD" not in plan.command.env
    assert settled.describe()["cache"] == {
        "policy": "prefer",
        "root": str(root),
        "used": True,
        "reasons": [],
    }
    assert tell(settled.cache) == [(logging.INFO, f"compile cache: {root}, verified")]


def test_no_root_is_no_more_than_a_line_of_information(settings: Settings) -> None:
    settled = settle(planned(settings), settings)
    root = settings.baked_root / "cpu" / "weights" / "baseline"
    line = f"compile cache: none used, starting cold: no baked root {root}"
    assert tell(settled.cache) == [(logging.INFO, line)]


def test_off_does_not_look(settings: Settings, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "inspect", None)
    plan = planned(settings)
    settled = settle(plan, with_policy(settings, "off"))
    assert settled.command == plan.command
    assert tell(settled.cache) == []


def test_require_refuses_without_a_root_and_says_how_to_get_one(settings: Settings) -> None:
    with pytest.raises(CacheRefused) as refused:
        settle(planned(settings), with_policy(settings, "require"))
    assert refused.value.exit_code == 1
    assert "no baked root" in str(refused.value)
    assert "hint: preheat bake cache baseline; or import one" in str(refused.value)


def test_in_the_image_which_cannot_bake_it_says_so_and_which_variants_are_in_it(
    settings: Settings, root: Path
) -> None:
    require = with_policy(settings, "require").model_copy(update={"variant": "seq8"})
    for name in (".seq8-best.preheat.part", ".seq8-best.preheat.old"):
        fill(root.with_name(name), {manifest.NAME: b"{}"})
    (root.parent / "empty").mkdir()
    (root.parent / "seq8.report.json").touch()
    with pytest.raises(CacheRefused) as refused:
        settle(planned(require), require, can_bake=False)
    build = "make build VARIANTS=seq8"
    assert refused.value.hint == f"bake it into the image: {build}; baked are: VARIANT=baseline"
    assert baked_beside(root) == ("baseline",)
    assert baked_beside(settings.baked_root / "no" / "such" / "root") == ()


def test_a_gpu_that_is_asked_for_and_not_there_is_the_next_step(settings: Settings) -> None:
    require = with_policy(settings, "require").model_copy(update={"target": "a10g"})
    with pytest.raises(CacheRefused) as refused:
        settle(planned(require), require, can_bake=False)
    assert "docker run --gpus all" in refused.value.hint


@pytest.mark.parametrize(
    ("found", "others", "can_bake", "hint"),
    [
        (Absent(Path("/r")), (), True, "preheat bake cache v; or import one: "),
        (Absent(Path("/r")), ("a", "b"), True, "FILE; baked are: VARIANT=a, VARIANT=b"),
        (Absent(Path("/r")), (), False, "VARIANTS=v; no variant is baked in"),
        (Absent(Path("/r")), ("v",), False, "VARIANTS=v; no variant is baked in"),
        (Unfit(Path("/r"), ("x",)), (), True, "bake it here: preheat bake cache v; or start cold"),
        (Unfit(Path("/r"), ("x",)), ("a",), False, "this image was changed or damaged: load it"),
        (SOUND, (), False, "on a machine like this one: make build VARIANTS=v"),
    ],
)
def test_the_next_step_is_one_that_can_be_taken_where_it_is_told(
    found: Found, others: tuple[str, ...], can_bake: bool, hint: str
) -> None:
    told = next_step(found, "v", others, can_bake=can_bake)
    assert hint in told
    assert can_bake or "preheat bake" not in told


def test_a_relative_root_without_a_working_directory_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = settings.model_copy(update={"baked_root": Path("baked")})
    plan = planned(relative)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="PREHEAT_BAKED_ROOT=baked: no working directory"):
        settle(plan, relative)


def test_require_starts_from_a_sound_root_and_has_nothing_to_fall_back_on(
    settings: Settings, root: Path
) -> None:
    settled = settle(planned(settings), with_policy(settings, "require"))
    assert settled.cache.used
    assert settled.fallback is None


def test_a_tampered_root_is_not_used_and_the_file_is_named(settings: Settings, root: Path) -> None:
    (root / "inductor").chmod(0o755)
    (root / "inductor" / "empty").chmod(0o644)
    (root / "inductor" / "empty").write_bytes(b"pickle")
    assert cold_reasons(settings) == ("inductor/empty: size differs (expected 0, got 6)",)
    with pytest.raises(CacheRefused, match="inductor/empty: size differs"):
        settle(planned(settings), with_policy(settings, "require"))


def test_an_empty_folder_that_a_start_left_is_no_reason_to_start_cold(
    settings: Settings, root: Path
) -> None:
    (root / "vllm").chmod(0o755)
    (root / "vllm" / "left").mkdir()
    assert settle(planned(settings), settings).cache.used


def unlink(root: Path) -> None:
    (root / "manifest.json").unlink()


def no_identity(root: Path) -> None:
    (root / identity.FILE).unlink()
    manifest.write(root)


def other_identity(root: Path) -> None:
    (root / identity.FILE).chmod(0o644)
    (root / identity.FILE).write_bytes(b"{}")
    manifest.write(root)


def writable(root: Path) -> None:
    (root / "manifest.json").chmod(0o666)


def writable_above(root: Path) -> None:
    root.parent.chmod(0o777)


def replaced_by_a_file(root: Path) -> None:
    root.rename(root.with_name("aside"))
    root.write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (unlink, "manifest.json: cannot be read: No such file or directory"),
        (no_identity, "identity.json: cannot be read: No such file or directory"),
        (other_identity, "identity.json: "),
        (writable, "manifest.json: can be written by everybody: chmod go-w "),
        (writable_above, "weights can be written by everybody: chmod go-w "),
        (replaced_by_a_file, "no baked root"),
    ],
)
def test_a_root_that_is_not_sound_is_not_used(
    settings: Settings, root: Path, harm: Callable[[Path], None], said: str
) -> None:
    root.chmod(0o755)
    harm(root)
    assert said in cold_reasons(settings)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_root_of_somebody_else_is_not_used(settings: Settings, root: Path) -> None:
    os.chown(root / "vllm", 4321, 4321)
    assert "vllm: belongs to uid 4321, neither root nor us: chown 0 " in cold_reasons(settings)[0]


def test_a_root_that_was_baked_for_something_else_is_not_used_and_all_of_it_is_named(
    settings: Settings, root: Path
) -> None:
    root.chmod(0o755)
    baked = json.loads((root / identity.FILE).read_bytes())
    baked["versions"]["python"] = "3.9.0"
    baked["argv"] += ["--max-num-seqs", "8"]
    (root / identity.FILE).chmod(0o644)
    (root / identity.FILE).write_bytes(identity.dump(identity.parse(json.dumps(baked).encode())))
    manifest.write(root)
    reasons = cold_reasons(settings)
    assert any("python" in reason and "3.9.0" in reason for reason in reasons)
    assert any("--max-num-seqs" in reason for reason in reasons)
    levels = {level for level, _ in tell(settle(planned(settings), settings).cache)}
    assert levels == {logging.WARNING}


def test_another_variants_root_put_in_its_place_is_not_used(settings: Settings, root: Path) -> None:
    other = settings.model_copy(update={"variant": "seq8"})
    root.rename(root.with_name("seq8"))
    assert any("variant name: baked baseline, here seq8" in one for one in cold_reasons(other))


def test_with_trusted_keys_only_a_signed_root_is_used(
    settings: Settings, root: Path, tmp_path: Path
) -> None:
    private, public = keygen(tmp_path / "keys")
    other, _ = keygen(tmp_path / "other")
    asked = settings.model_copy(update={"trusted_keys": str(public)})
    assert cold_reasons(asked) == ("manifest.sig: missing, and PREHEAT_TRUSTED_KEYS is set",)
    sign(root, other)
    assert "is not trusted" in cold_reasons(asked)[0]
    name = sign(root, private)
    assert settle(planned(asked), asked).cache.used
    found = inspect(root, module.signature.trusted_keys(str(public)))
    assert isinstance(found, Sound)
    assert found.key == name


def test_keys_that_are_none_stop_the_program_whatever_the_policy(
    settings: Settings, root: Path
) -> None:
    asked = settings.model_copy(update={"trusted_keys": "/no/such/file"})
    with pytest.raises(ConfigError, match="PREHEAT_TRUSTED_KEYS"):
        settle(planned(asked), asked)


def test_a_root_may_be_reached_by_a_link_and_is_used_where_it_is(
    settings: Settings, root: Path, tmp_path: Path
) -> None:
    linked = settings.model_copy(update={"baked_root": tmp_path / "link"})
    (tmp_path / "link").symlink_to(settings.baked_root)
    env = settle(planned(linked), linked).command.env
    assert env["VLLM_CACHE_ROOT"] == str(root / "vllm")


def test_retuned_it_starts_from_a_copy_in_the_runs_own_folder(
    settings: Settings, root: Path, tmp_path: Path
) -> None:
    winner = root / "triton" / "k.autotune.json"
    root.chmod(0o755)
    winner.parent.chmod(0o755)
    (root / manifest.NAME).unlink()
    winner.write_text("{}")
    manifest.write(root)
    plan = settle(planned(settings), settings)
    copied = retuned(plan, tmp_path)
    copy = Path(copied.command.env["VLLM_CACHE_ROOT"]).parent
    assert copy.parent == tmp_path
    assert copied.command.env["VLLM_FORCE_AOT_LOAD"] == "1"
    assert copied.cache == plan.cache
    assert (copy / identity.FILE).read_bytes() == (root / identity.FILE).read_bytes()
    assert winner.exists()
    assert not (copy / "triton" / winner.name).exists()


def test_there_is_nothing_to_retune_without_a_baked_root(
    settings: Settings, tmp_path: Path
) -> None:
    plan = settle(planned(settings), settings)
    assert retuned(plan, tmp_path) is plan


def test_a_copy_that_cannot_be_made_says_where(settings: Settings, root: Path) -> None:
    with pytest.raises(ServeError, match=r"no copy of .* in /proc/nope/retuned: No such file"):
        retuned(settle(planned(settings), settings), Path("/proc/nope"))


@pytest.mark.parametrize(
    ("found", "verdict", "choice"),
    [
        (Absent(Path("/r")), None, Cold(("no baked root /r",))),
        (Unfit(Path("/r"), ("a", "b")), Accepted(), Cold(("a", "b"))),
        (SOUND, Accepted(), Baked(Path("/"))),
        (SOUND, Accepted("NVIDIA A40"), Baked(Path("/"), "NVIDIA A40")),
        (SOUND, Rejected((Reason("x", "1", "2"),)), Cold(("x: baked 1, here 2",))),
        (SOUND, None, Cold(("nobody compared its identity",))),
    ],
)
def test_the_choice_is_a_matter_of_facts_alone(
    found: Found, verdict: Accepted | Rejected | None, choice: Baked | Cold
) -> None:
    assert choose(found, verdict) == choice


def test_a_siblings_name_reaches_the_engine(
    settings: Settings, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "match", lambda *_: Accepted("NVIDIA A40"))
    settled = settle(planned(settings), settings)
    assert settled.command.env["PREHEAT_PRESENT_AS"] == "NVIDIA A40"


def test_of_many_reasons_the_log_tells_the_first_few() -> None:
    reasons = tuple(f"file {number}" for number in range(10))
    cache = Cache("prefer", Path("/r"), reasons=reasons)
    assert [line for _, line in tell(cache)] == [
        "compile cache: none used, starting cold: file 0",
        "file 1",
        "file 2",
        "file 3",
        "and 6 more",
    ]
    assert dataclasses.replace(cache, absent=True).describe()["reasons"] == list(reasons)
