from pathlib import Path

import pytest

from serve.errors import ConfigError
from serve.target import Gpu, choose_target, load_target, parse_gpu, probe_gpu

A10G = Gpu("NVIDIA A10G", 22587, 22000)


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    targets = tmp_path / "targets"
    targets.mkdir()
    (targets / "cpu.env").write_text("DEVICE=cpu\nDEFAULT_MODEL=tiny\n")
    (targets / "a10g.env").write_text(
        "DEVICE=cuda\nDEFAULT_MODEL=big\nDEVICE_NAMES=NVIDIA A10G, NVIDIA A10G-24Q\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("gpu", "name"), [(None, "cpu"), (A10G, "a10g"), (Gpu("NVIDIA A10G-24Q", 1, 1), "a10g")]
)
def test_the_target_is_what_the_machine_is(experiments: Path, gpu: Gpu | None, name: str) -> None:
    assert choose_target(None, gpu, experiments).name == name


def test_a_named_target_is_taken_whatever_the_machine_is(experiments: Path) -> None:
    assert choose_target("a10g", None, experiments).name == "a10g"


def test_a_gpu_that_no_target_describes_is_refused_with_the_choices(experiments: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_target(None, Gpu("NVIDIA H200", 1, 1), experiments)
    assert "describes GPU 'NVIDIA H200'" in str(refused.value)
    assert "hint: say TARGET=<a10g|cpu> or add a target file" in str(refused.value)


def test_an_unknown_target_names_the_nearest(experiments: Path) -> None:
    with pytest.raises(ConfigError, match=r"no target 'a10' in .*did you mean a10g"):
        load_target("a10", experiments)


def test_a_target_file_must_say_its_device(experiments: Path) -> None:
    (experiments / "targets" / "new.env").write_text("DEFAULT_MODEL=tiny\nDEVICE=\n")
    with pytest.raises(ConfigError, match="DEVICE='': Field required"):
        load_target("new", experiments)


@pytest.mark.parametrize(
    ("said", "gpu"),
    [
        ("NVIDIA A10G, 22587, 22000\n", A10G),
        ("NVIDIA A10G, 22587, 22000\nNVIDIA A10G, 22587, 1\n", A10G),
        ("Strange, with comma, 5, 4", Gpu("Strange, with comma", 5, 4)),
        ("NVIDIA GB10, [N/A], [N/A]\n", Gpu("NVIDIA GB10", 0, 0)),
        ("No devices were found\n", None),
        ("\n", None),
    ],
)
def test_nvidia_smi_is_read_whatever_it_says(said: str, gpu: Gpu | None) -> None:
    assert parse_gpu(said) == gpu


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_real_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(tmp_path, monkeypatch, "echo 'NVIDIA A10G, 22587, 22000'")
    assert probe_gpu() == A10G


def test_an_nvidia_smi_that_fails_or_is_missing_means_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert probe_gpu() is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert probe_gpu() is None
