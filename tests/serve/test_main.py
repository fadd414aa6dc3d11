import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import preheat
from serve import __main__ as command_line
from serve import __version__, identity
from serve.__main__ import main
from serve.errors import ConfigError
from serve.plan import make_plan
from serve.settings import read_settings, reference
from tests.serve.checkpoints import checkpoint


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and an environment that is not the caller's."""
    for name in list(os.environ):
        if name.startswith(("PREHEAT_", "VLLM_")) or name in ("VARIANT", "MODEL", "TARGET", "PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PREHEAT_BAKED_ROOT", str(tmp_path / "baked"))
    return checkpoint(tmp_path / "tiny", "a", "mtp.a")


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_check_prints_a_command_that_a_shell_takes_as_it_is(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, "check", "seq8-best", "--target", "cpu", "--model", str(tiny))
    comments = [line for line in out.splitlines() if line.startswith("#")]
    assert comments[:2] == [
        "# model tiny: MODEL names it",
        "# dropped CUDAGRAPH_CAPTURE_SIZES (target cpu): the CPU backend captures no graphs",
    ]
    words = shlex.split(out, comments=True)
    assert words[:2] == ["env", "-i"]
    assert words[-2:-1] == ["--uds"]
    assert str(tiny) in words


def test_check_for_programs_tells_argv_and_environment(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, "check", "baseline", "--target", "cpu", "--model", str(tiny), "--json")
    told = json.loads(out)
    assert told["variant"] == "baseline"
    assert told["argv"][0] == sys.executable
    assert told["env"]["VLLM_PLUGINS"] == "preheat"


def test_check_for_programs_tells_the_identity_as_a_baked_root_would_hold_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("check", "seq8-best", "--target", "cpu", "--model", str(tiny), "--json")
    told = json.loads(said(capsys, *asked))["identity"]
    raw = json.dumps(told).encode()
    assert json.loads(identity.dump(identity.parse(raw))) == told
    plan = make_plan(
        read_settings({"VARIANT": "seq8-best", "TARGET": "cpu", "MODEL": str(tiny)}),
        Path(sys.executable),
        tiny / "engine.sock",
    )
    assert identity.parse(raw) == identity.here(plan)
    assert told["schema"] == 1


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are looked for: empty, as on a machine without a GPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def nvidia_smi(folder: Path, script: bytes) -> None:
    (folder / "nvidia-smi").write_bytes(script)
    (folder / "nvidia-smi").chmod(0o755)


def device(capsys: pytest.CaptureFixture[str], tiny: Path) -> dict[str, object]:
    """What ``check`` tells of the device of an A10G's target."""
    asked = ("check", "seq8-best", "--target", "a10g", "--model", str(tiny), "--json")
    told: dict[str, object] = json.loads(said(capsys, *asked))["identity"]["device"]
    return told


def test_a_machine_without_a_gpu_tells_the_rest_of_a_gpus_identity(
    tiny: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"kind": "cuda", "name": "", "presented": "", "isa": []}
    nothing |= {"capability": None, "multiprocessors": None}
    assert device(capsys, tiny) == nothing
    # A driver's library without a GPU; a file of another architecture; a folder.
    nvidia_smi(tools, b"#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert device(capsys, tiny) == nothing
    nvidia_smi(tools, b"\x7fELF garbage")
    assert device(capsys, tiny) == nothing


def test_a_gpu_that_is_there_is_told_whatever_its_name_is_spelled_in(
    tiny: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nvidia_smi(tools, b"#!/bin/sh\nprintf 'NVIDIA \\377, 23028, 22000\\n'\n")
    assert device(capsys, tiny)["name"] == "NVIDIA \ufffd"


def test_paths_that_lead_nowhere_are_named_and_no_traceback(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tiny.parent / "loop"
    loop.symlink_to(loop)
    monkeypatch.setenv("PREHEAT_CACHE_ROOT", str(loop))
    asked = ("check", "baseline", "--target", "cpu", "--model", str(tiny), "--json")
    assert f"PREHEAT_CACHE_ROOT={loop}: " in said(capsys, *asked, status=2)
    monkeypatch.delenv("PREHEAT_CACHE_ROOT")
    monkeypatch.setattr(identity, "CPUINFO", tiny / "no-such")
    assert "no-such: cannot be read" in said(capsys, *asked, status=1)


def test_no_folder_for_temporary_files_is_told_and_no_traceback(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    for verb in ("check", "run"):
        assert main([verb]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("preheat: no folder takes a temporary file: No usable temporary")
        assert "hint: TMPDIR names one that does; in a container: docker run --tmpfs /tmp" in err


def test_without_the_package_that_bakes_nobody_is_told_to_use_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREHEAT_CACHE_POLICY", "require")
    asked = ("check", "baseline", "--target", "cpu", "--model", str(tiny))
    assert "hint: preheat bake cache baseline" in said(capsys, *asked, status=1)
    monkeypatch.setattr(command_line, "find_spec", lambda _name: None)
    told = said(capsys, *asked, status=1)
    assert "hint: bake it into the image: make build VARIANTS=baseline" in told


def test_check_tells_which_compile_cache_a_start_would_use_and_refuses_as_a_start_would(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("check", "baseline", "--target", "cpu", "--model", str(tiny))
    reason = f"no baked root {tiny.parent}/baked/cpu/tiny/baseline"
    assert f"# compile cache: none used, starting cold: {reason}\n" in said(capsys, *asked)
    cache = json.loads(said(capsys, *asked, "--json"))["cache"]
    assert (cache["policy"], cache["used"], cache["reasons"]) == ("prefer", False, [reason])
    monkeypatch.setenv("PREHEAT_CACHE_POLICY", "require")
    assert "PREHEAT_CACHE_POLICY=require" in said(capsys, *asked, status=1)
    monkeypatch.setenv("PREHEAT_CACHE_POLICY", "off")
    assert "compile cache" not in said(capsys, *asked)
    monkeypatch.setenv("PREHEAT_CACHE_POLICY", "always")
    assert "PREHEAT_CACHE_POLICY='always'" in said(capsys, *asked, status=2)


def test_the_command_line_goes_before_the_environment(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VARIANT", "seq8")
    monkeypatch.setenv("TARGET", "cpu")
    monkeypatch.setenv("MODEL", str(tiny))
    assert json.loads(said(capsys, "check", "--json"))["variant"] == "seq8"
    assert json.loads(said(capsys, "check", "baseline", "--json"))["variant"] == "baseline"


def test_env_tells_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "env")
    entries = json.loads(said(capsys, "env", "--json"))
    assert [entry["name"] for entry in entries] == [entry.name for entry in reference()]
    for entry in entries:
        assert entry["name"] in text
        assert entry["sentence"] in text


def test_a_wrong_name_exits_2_with_the_nearest(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, "check", "seq8-bets", status=2)
    assert err.startswith("preheat: no variant 'seq8-bets' in ")
    assert "did you mean seq8-best?" in err
    assert "hint: there are: awq, baseline, seq8, seq8-best, " in err


def test_a_bad_port_exits_2_naming_key_and_value(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, "run", "--port", "http", status=2)
    assert err.startswith("preheat: environment: PORT='http': ")


@pytest.mark.parametrize("arguments", [[], ["start"], ["run", "--no-such"], ["run", "a", "b"]])
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: preheat serve" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"preheat {__version__}\n"


def test_ctrl_c_while_planning_exits_130(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "make_plan", interrupted)
    assert main(["check"]) == 128 + signal.SIGINT


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "serve", "env"],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_check_and_env_import_none_of_the_gateways_libraries() -> None:
    heavy = ("uvicorn", "fastapi", "aiohttp", "torch", "vllm")
    script = (
        "import sys; from serve.__main__ import main; main(['env'])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_gateway_imports_neither_torch_nor_vllm() -> None:
    script = (
        "import sys, serve.run\n"
        "print([name for name in ('torch', 'vllm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 2), (["--help"], 0), (["bogus"], 2), (["serve", "env"], 0)]
)
def test_preheat_hands_over_to_the_package_that_its_first_word_names(
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["preheat", *arguments])
    assert preheat.main() == status
    captured = capsys.readouterr()
    assert captured.out or captured.err


def test_settings_that_no_command_line_names_are_still_refused() -> None:
    with pytest.raises(ConfigError):
        read_settings({"PREHEAT_NO_SUCH": "1"})


def test_an_interrupt_while_a_package_is_imported_is_no_traceback(monkeypatch, capsys):
    def interrupted(_name):
        raise KeyboardInterrupt

    monkeypatch.setattr(preheat.importlib, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["preheat", "bake", "inspect", "x"])
    assert preheat.main() == 130
    assert capsys.readouterr() == ("", "")
