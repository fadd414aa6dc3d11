"""lm-evaluation-harness on a running server: items in, one score each out.

A process of its own, offline: its libraries are many, slow to import, and look for the network.
Owns which tasks there are and what each needs; tasks themselves are `scripts/quality/tasks`.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from scripts.quality.modes import Mode, spread
from scripts.quality.sources import DATASETS
from scripts.quality.tasks.scores import RUN_CODE
from serve.settings import REPOSITORY

FOLDER = Path(__file__).parent / "tasks"
CACHE = REPOSITORY / ".cache"
HUB = "mmlu_pro"
HUB_ITEMS = 12_032
HUB_FOLDER = "datasets--TIGER-Lab--MMLU-Pro"
CODE = "humaneval"
# Of our tasks, so that none is taken for one of the harness's own.
PREFIX = "preheat_"
TASKS = ("ifeval", "mmlu", "gsm8k", "gpqa_diamond", CODE, HUB)
# What nltk must find before IFEval's checkers import, and may be empty.
PUNKT = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
TAIL_CHARACTERS = 1500


class NotEvaluated(RuntimeError):
    """The harness failed; the text is the end of what it said."""


@dataclass(frozen=True)
class Endpoint:
    """Who is asked, by which name of its model, and how many requests at once."""

    url: str
    model: str
    concurrency: int


@dataclass(frozen=True)
class Asked:
    """One task, the places of its items, and the longest answer in tokens."""

    task: str
    of: int
    places: list[int]
    answer_tokens: int


@dataclass(frozen=True)
class Scored:
    """What each item scored, 0 or 1, in the order asked; of how many no answer could be read."""

    scores: list[int]
    unread: int = 0


@dataclass(frozen=True)
class Skipped:
    """A task that is left out, and why."""

    task: str
    why: str


def plan(
    wanted: Iterable[str],
    mode: Mode,
    environ: Mapping[str, str],
    *,
    run_code: bool,
    answer_tokens: int | None = None,
) -> list[Asked | Skipped]:
    """What of ``wanted`` is asked, and what is left out."""
    told: list[Asked | Skipped] = []
    for task in wanted:
        if why := _missing(task, environ, run_code=run_code):
            told.append(Skipped(task, why))
            continue
        of = HUB_ITEMS if task == HUB else DATASETS[task].items
        places = spread(of, mode.count(of))
        told.append(Asked(task, of, places, answer_tokens or mode.answer_tokens))
    return told


def _missing(task: str, environ: Mapping[str, str], *, run_code: bool) -> str:
    """Why ``task`` cannot be asked; empty where it can."""
    if not importlib.util.find_spec("lm_eval"):
        return "lm-evaluation-harness is not installed: pip install 'preheat[quality]'"
    if task == HUB:
        hub = Path(environ.get("HF_HUB_CACHE") or hugging_face(environ) / "hub")
        return "" if (hub / HUB_FOLDER).is_dir() else f"{hub / HUB_FOLDER} is not there"
    if task == CODE and not run_code:
        return "it runs the model's code: say --run-code"
    path = CACHE / "datasets" / f"{task}.jsonl"
    if not path.is_file():
        return f"{path} is not there: make datasets"
    if sha256(path.read_bytes()).hexdigest() != DATASETS[task].sha256:
        return f"{path} is not what was pinned: make datasets"
    return ""


def hugging_face(environ: Mapping[str, str]) -> Path:
    """Where the hub's clients keep what they have."""
    return Path(environ.get("HF_HOME") or Path(environ.get("HOME", "/")) / ".cache" / "huggingface")


def scores(
    tasks: Sequence[Asked], of: Endpoint, work: Path, environ: Mapping[str, str]
) -> dict[str, Scored]:
    """Each task, its items in the order of its ``places``.

    All in one process: importing the harness takes longer than a short task.

    :raises NotEvaluated: the harness failed, or left items out.
    """
    log = work / "harness.log"
    with log.open("wb") as out:
        done = subprocess.run(
            command(tasks, of, work),
            cwd=REPOSITORY,
            env=environment(environ, work, run_code=any(one.task == CODE for one in tasks)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = log.read_text(errors="replace")[-TAIL_CHARACTERS:]
        raise NotEvaluated(f"lm_eval ended with {done.returncode}:\n{tail}")
    found = work / "harness"
    # A date follows: without its digit, mmlu's files would be mmlu_pro's, too.
    return {one.task: read(one, found.rglob(f"samples_{PREFIX}{one.task}_[0-9]*")) for one in tasks}


def read(asked: Asked, files: Iterable[Path]) -> Scored:
    """The harness's samples of one task, put in order; none may come twice.

    :raises NotEvaluated: they are not those that were asked.
    """
    lines = [line for path in files for line in path.read_bytes().split(b"\n") if line.strip()]
    items = [json.loads(line) for line in lines]
    found = {int(item["doc_id"]): item for item in items}
    if len(items) != len(found) or set(found) != set(asked.places):
        said = f"asked {len(asked.places)} items, got {len(items)} of {len(found)}"
        raise NotEvaluated(f"{asked.task}: {said}")
    ordered = [found[place] for place in asked.places]
    unread = sum(int(item.get("unread", 0)) for item in ordered)
    return Scored([int(item["score"]) for item in ordered], unread)


def command(tasks: Sequence[Asked], of: Endpoint, work: Path) -> list[str]:
    """What runs the harness on ``tasks``, which have one longest answer."""
    arguments = {
        "model": of.model,
        "base_url": f"{of.url}/v1/chat/completions",
        "num_concurrent": of.concurrency,
        "max_retries": 1,
        "tokenized_requests": False,
        "timeout": 1800,
    }
    (answer_tokens,) = {one.answer_tokens for one in tasks}
    words = [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions"]
    words += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    words += ["--tasks", ",".join(PREFIX + one.task for one in tasks)]
    words += ["--include_path", str(FOLDER), "--apply_chat_template"]
    words += ["--samples", json.dumps({PREFIX + one.task: one.places for one in tasks})]
    words += ["--gen_kwargs", f"max_gen_toks={answer_tokens},temperature=0.0"]
    return [*words, "--output_path", str(work / "harness"), "--log_samples"]


def environment(environ: Mapping[str, str], work: Path, *, run_code: bool) -> dict[str, str]:
    """The harness's: offline, with the tables that nltk wants, empty."""
    tables = work / "nltk" / "tokenizers" / "punkt_tab" / "english"
    tables.mkdir(parents=True, exist_ok=True)
    for name in PUNKT:
        (tables / name).touch()
    ours = {
        "NLTK_DATA": str(work / "nltk"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(hugging_face(environ)),
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "OPENAI_API_KEY": "unused",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(REPOSITORY),
        RUN_CODE: "1" if run_code else "0",
    }
    return {**environ, **ours}
