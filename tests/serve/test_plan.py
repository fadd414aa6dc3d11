from pathlib import Path

import pytest

from serve import plan as module
from serve.errors import ConfigError
from serve.plan import make_plan, versions
from serve.settings import Settings, read_settings
from tests.serve.checkpoints import checkpoint
from tests.serve.test_counts import vocabulary
from tests.serve.test_origin import record


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(module, "probe_gpu", lambda: None)
    weights = checkpoint(tmp_path / "weights" / "tiny", "a")
    experiments = tmp_path / "experiments"
    for folder in ("v", "targets", "models"):
        (experiments / folder).mkdir(parents=True)
    (experiments / "v" / "config.env").write_text(
        "SUMMARY=all\nMAX_NUM_SEQS=8\nSPECULATIVE_METHOD=mtp\nNUM_SPECULATIVE_TOKENS=4\n"
    )
    (experiments / "targets" / "cpu.env").write_text("DEVICE=cpu\nDEFAULT_MODEL=tiny\n")
    (experiments / "models" / "tiny.env").write_text("PATH=weights/tiny\n")
    assert weights.is_dir()
    return read_settings(
        {
            "VARIANT": "v",
            "PREHEAT_EXPERIMENTS": str(experiments),
            "PREHEAT_CACHE_ROOT": str(tmp_path / "cache"),
        }
    )


def test_three_names_become_one_command(settings: Settings, tmp_path: Path) -> None:
    plan = make_plan(settings, Path("/python"), Path("/engine.sock"))
    assert (plan.variant.name, plan.model.name, plan.target.name) == ("v", "tiny", "cpu")
    assert plan.command.argv[:5] == (
        "/python",
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        "--model",
        str(tmp_path / "weights" / "tiny"),
    )
    assert plan.command.env["VLLM_CACHE_ROOT"] == str(tmp_path / "cache" / "v" / "vllm")


def test_a_draft_vocabulary_is_chosen_by_the_models_counts(
    settings: Settings, tmp_path: Path
) -> None:
    experiments = tmp_path / "experiments"
    checkpoint(tmp_path / "weights" / "tiny", "a", "mtp.x")
    with (experiments / "v" / "config.env").open("a") as file:
        file.write("DRAFT_VOCAB_SIZE=8192\n")
    (experiments / "models" / "tiny.env").write_text("PATH=weights/tiny\nDRAFT_VOCAB_SIZE=4096\n")
    places = (Path("/python"), Path("/engine.sock"))
    (dropped,) = make_plan(settings, *places).command.dropped
    assert (dropped.lever, dropped.by) == ("DRAFT_VOCAB_SIZE", "model tiny")
    counts = vocabulary(tmp_path / "weights" / "tiny", experiments / "vocabularies" / "tiny.json")
    plan = make_plan(settings, *places)
    command = plan.command
    assert not command.dropped
    assert plan.describe()["levers"]["draft_vocab_size"] == 8192
    assert plan.describe()["model"]["draft_vocab_size"] == 4096
    assert command.env["PREHEAT_DRAFT_VOCAB_SIZE"] == "4096"
    assert command.env["PREHEAT_DRAFT_COUNTS"] == str(counts)
    # Another checkpoint under the same name.
    vocabulary(tmp_path / "weights" / "tiny", experiments / "other.json", "z")
    plan = make_plan(settings, *places)
    (dropped,) = plan.command.dropped
    assert (dropped.lever, dropped.by) == ("DRAFT_VOCAB_SIZE", "model tiny")
    assert dropped.reason.startswith("its counts are of another vocabulary (")
    assert "PREHEAT_DRAFT_COUNTS" not in plan.command.env
    assert plan.describe()["model"]["draft_vocab_size"] is None


def test_counts_are_read_for_those_alone_who_choose_drafts_by_them(
    settings: Settings, tmp_path: Path
) -> None:
    vocabulary(
        tmp_path / "weights" / "tiny", tmp_path / "experiments" / "vocabularies" / "tiny.json"
    )
    assert make_plan(settings, Path("/python"), Path("/engine.sock")).model.counts is None


def test_a_model_that_is_named_goes_before_the_targets_own(
    settings: Settings, tmp_path: Path
) -> None:
    other = checkpoint(tmp_path / "other", "a", "mtp.x")
    named = settings.model_copy(update={"model": str(other)})
    plan = make_plan(named, Path("/python"), Path("/engine.sock"))
    assert plan.model.path == other
    assert plan.why == "MODEL names it"
    assert not plan.command.dropped


def test_the_description_tells_what_derived_weights_were_made_of(
    settings: Settings, tmp_path: Path
) -> None:
    plan = make_plan(settings, Path("/python"), Path("/engine.sock"))
    assert plan.describe()["model"]["derived"] is None
    record(tmp_path / "weights" / "tiny", tmp_path / "weights" / "tiny")
    plan = make_plan(settings, Path("/python"), Path("/engine.sock"))
    told = plan.describe()["model"]["derived"]
    assert told["slug"] == "tiny"
    assert told["inputs"]["corpus"] == "0" * 64


def test_the_description_tells_what_is_on_what_was_dropped_and_why(settings: Settings) -> None:
    told = make_plan(settings, Path("/python"), Path("/engine.sock")).describe()
    assert told["variant"] == "v"
    assert told["levers"]["max_num_seqs"] == 8
    assert "repetition_penalty" not in told["levers"]
    assert [item["lever"] for item in told["dropped"]] == [
        "SPECULATIVE_METHOD",
        "NUM_SPECULATIVE_TOKENS",
    ]
    assert told["dropped"][0]["reason"] == "the checkpoint has no mtp.* weights"
    assert told["target"] == {"name": "cpu", "device": "cpu"}
    assert told["model"]["why"] == "default of target cpu"


def test_a_missing_default_model_names_its_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "weights" / "tiny").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="model tiny: no folder"):
        make_plan(settings, Path("/python"), Path("/engine.sock"))


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert {"preheat", "python"} <= found.keys()
    assert all(found.values())
