"""Fine-tunes a model's MTP head on text of the model's own, the base frozen as it is served.

    prompts ─► engine ─► continuations ─► frozen base ─► hidden states, greedy choices ─► head

1. Prompts that no evaluation holds: the training side of the tiny model's corpus, or a file.
2. The model goes on from them in vLLM, as it is served (greedy; one in four sampled).
3. The frozen base runs over that text once. A quantized folder's weights are given back in BF16.
4. The MTP layer, unrolled as vLLM re-runs it, learns what the base chooses greedily; projections,
   norms and all in float32 while it learns, BF16 as it ships.

Every stage is kept in the work folder, named by what it was made of, and taken over by the next run
of the same. The result is a file of
`mtp.*` tensors and a `.json` that binds it to its checkpoint; `MTP_HEAD=redistilled` serves it.

Why no trainer of the field's: vLLM's Speculators 0.9 reads and writes Qwen3.5's `mtp.*` and has
this loss, but wants an accelerator (one for vLLM, one for training) and hidden states from a vLLM
connector that keeps them on one; and in its unrolling, step k attends over what step k made at all
earlier places, at step 1's positions. vLLM's drafter does not run so: its cache holds step 1's keys
of the text, then one of each further step, a position later each time. `scripts.tiny.mtp` unrolls
that. SpecForge 0.2 trains through SGLang on GPUs. Speculators' loss (FastMTP's discount) is the
one used here; its targets are the text's tokens, here the base's greedy choices, which differ where
the text was sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.record import check_writable, now, this_machine
from scripts.mtp import base, continuations, features, prompts, train
from scripts.mtp.continuations import Asking, Continuation
from scripts.mtp.output import identity, prompts_digest, write
from scripts.mtp.prompts import Prompt
from scripts.served import Failed, NotServed, served
from scripts.tiny.packages import FetchError
from serve.cli import positive
from serve.errors import ServeError
from serve.model import find_model
from serve.settings import REPOSITORY

AWAY = "hint: move it away, or give another --out"
HEADS = REPOSITORY / "weights" / "heads"
EXAMPLES = """examples:
  python -m scripts.redistill_mtp tiny                   all of it; a second call goes on
  python -m scripts.redistill_mtp tiny --base weights/derived/tiny/awq-w4a16-mlp_g32 --variant awq
  python -m scripts.redistill_mtp qwen3.5-4b --prompts mine.jsonl --url http://localhost:8000 \\
      --device cuda --every 8 --out /data/heads/qwen3.5-4b.safetensors
"""


@dataclass(frozen=True)
class Job:
    """Where everything is: the checkpoint that ships, the base as served, the work, the result."""

    model: str
    source: Path
    base: Path
    work: Path
    out: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the head is written, 1 when it could not be made, 2 usage."""
    top = parser()
    parsed = top.parse_args(arguments)
    if not 0 < parsed.beta <= 1 or not 0 < parsed.muon < float("inf"):
        top.error("--beta: expected above 0 and at most 1; --muon: expected above 0")
    if not is_there(parsed.device):
        top.error(f"--device {parsed.device}: torch has none here")
    torch.set_num_threads(parsed.threads)
    console = Console(stderr=True, highlight=False)
    try:
        told = redistill(parsed, console)
    except ServeError as error:
        print(f"redistill_mtp: {error}", file=sys.stderr)
        return error.exit_code
    except (prompts.PromptError, FetchError, NotServed, Failed, train.OtherRun) as error:
        print(f"redistill_mtp: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or "the work folder"
        print(f"redistill_mtp: {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        # `served` makes the one of the other.
        console.print("redistill_mtp: interrupted; the same command goes on", markup=False)
        return 1
    print(json.dumps(told, indent=1) if parsed.json else report_of(told))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    plan, asking = train.Plan(), Asking()
    top = argparse.ArgumentParser(
        prog="python -m scripts.redistill_mtp",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = top.add_argument
    say("model", help="a name in experiments/models, or a checkpoint folder")
    say("--base", type=Path, help="the folder as served, if quantized (the model's)")
    say("--prompts", type=Path, help="JSON lines with prompt or text (tiny: its corpus)")
    say("--count", type=positive, default=3000, help="prompts drawn from the corpus (3000)")
    say("--url", default="", help="an engine that serves the base (one is started)")
    say("--variant", default="baseline", help="variant to start it by (baseline)")
    say("--target", default="", help="cpu, a10g, … (detected)")
    say("--tokens", type=positive, default=asking.tokens, help="tokens a prompt at most (160)")
    say("--concurrency", type=positive, default=asking.concurrency, help="requests at a time (64)")
    say("--steps", type=positive, default=plan.steps, help=f"of training ({plan.steps})")
    say("--batch", type=positive, default=plan.batch, help=f"texts a step ({plan.batch})")
    say("--unroll", type=positive, default=plan.unroll, help="drafts that are trained (4)")
    say("--beta", type=float, default=plan.beta, help="discount of each further draft (0.6)")
    say("--every", type=positive, default=plan.every, help="loss at one place in so many (4)")
    say("--muon", type=float, default=plan.rates.muon, help="rate of the matrices (0.01)")
    say("--seed", type=int, default=0, help="of prompts and order (0)")
    say("--device", default="cpu", help="cpu, cuda, cuda:1, … (cpu)")
    say("--amp", action=argparse.BooleanOptionalAction, default=True, help="BF16 products (yes)")
    say("--threads", type=positive, default=os.cpu_count() or 1, help="of the CPU (all)")
    say("--work", type=Path, help="stages are kept here (.cache/redistill/MODEL)")
    say("--out", type=Path, help="the head (weights/heads/MODEL.safetensors)")
    say("--json", action="store_true", help="what was made, as JSON")
    return top


def is_there(device: str) -> bool:
    """Whether torch can compute on a device of this name."""
    try:
        torch.empty(0, device=device)
    # Of a name it does not know, and of a driver that is not there: its kinds of errors differ.
    except (RuntimeError, AssertionError):
        return False
    return True


def redistill(parsed: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All stages; what is done already is taken over."""
    begun = time.monotonic()
    job = job_of(parsed)
    job.work.mkdir(parents=True, exist_ok=True)
    check_writable(job.out.parent)
    sources = {"source": base.digests(job.source), "base": base.digests(job.base)}
    refuse_another(job.out, sources["base"])
    asked = prompts_of(parsed, job, console)
    path = job.work / f"continuations-{said_by(parsed, asked, sources)}.jsonl"
    texts = texts_of(parsed, job, asked, path, console)
    checkpoint = base.load(job.base)
    plan = plan_of(parsed)
    data = base.sha256(path)
    with bar(console, "features") as shown:
        folder = job.work / f"features-{identity(sources, data)}"
        made = features.compute(checkpoint, texts, folder, parsed.device, shown)
    run = identity(sources, data, train.as_json(plan))
    trainer = train.Trainer(checkpoint, made, plan, job.work, run)
    trainer.resume()
    with bar(console, "training") as shown:
        trainer.run(lambda entry: console.print(_told(entry), markup=False), shown)
    about = {
        "schema": 1,
        "model": job.model,
        "made": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        **sources,
        "data": {
            "sha256": data,
            "texts": len(made),
            "kept_out": len(trainer.kept),
            "tokens": sum(len(text.ids) for text in made),
            "said": sum(len(text.ids) - text.start - 1 for text in made),
            "sampled": sum(one.sampled for one in texts),
            "prompts_sha256": prompts_digest(asked),
        },
        "plan": train.as_json(plan),
        "machine": this_machine().model_dump(),
        "torch": torch.__version__,
        "seconds": {"training": round(trainer.progress.seconds, 1)},
        "places": trainer.progress.places,
        "curve": trainer.progress.curve,
        "command": ["python", "-m", "scripts.redistill_mtp", *sys.argv[1:]],
    }
    write(job.out, train.tensors_of(trainer.mtp), about)
    told = {k: about[k] for k in ("model", "data", "places")}
    first, last = trainer.progress.curve[0], trainer.progress.curve[-1]
    told |= {"before": first, "after": last, "seconds": round(time.monotonic() - begun, 1)}
    return told | {"out": str(job.out)}


def job_of(parsed: argparse.Namespace) -> Job:
    """Where everything is.

    :raises serve.errors.ConfigError: no such model.
    """
    source = find_model(parsed.model, REPOSITORY / "experiments")
    work = parsed.work or REPOSITORY / ".cache" / "redistill" / source.name
    out = parsed.out or HEADS / f"{source.name}.safetensors"
    return Job(source.name, source.path, parsed.base or source.path, work, out)


def refuse_another(out: Path, digests: Mapping[str, str]) -> None:
    """A head that is there already may be made again, not replaced by one of another base.

    :raises scripts.mtp.train.OtherRun: it would be.
    """
    beside = out.with_suffix(".json")
    if out.is_dir():
        raise train.OtherRun(f"{out}: expected a file, got a folder\nhint: give another --out")
    if not out.exists() or not beside.exists():
        return
    try:
        was = json.loads(beside.read_text(encoding="utf-8")).get("base")
    except (ValueError, AttributeError) as error:
        raise train.OtherRun(f"{beside}: does not say its base: {error}\n{AWAY}") from error
    if was != digests:
        raise train.OtherRun(f"{out}: is there, of another base\n{AWAY}")


def plan_of(parsed: argparse.Namespace) -> train.Plan:
    """The plan of the command line."""
    rates = train.Plan().rates
    return train.Plan(
        steps=parsed.steps,
        batch=parsed.batch,
        seed=parsed.seed,
        unroll=parsed.unroll,
        beta=parsed.beta,
        every=parsed.every,
        device=parsed.device,
        amp=parsed.amp,
        rates=type(rates)(
            muon=parsed.muon,
            other=rates.other * parsed.muon / rates.muon,
            warmup=rates.warmup,
            cooldown=rates.cooldown,
        ),
    )


def prompts_of(parsed: argparse.Namespace, job: Job, console: Console) -> list[Prompt]:
    """Those of the file that was given, or of the corpus.

    :raises prompts.PromptError: another model's prompts must be given.
    """
    if parsed.prompts:
        return prompts.read(parsed.prompts)
    if job.model != "tiny":
        raise prompts.PromptError(f"{job.model}: --prompts is needed: only tiny has a corpus here")
    path = job.work / f"prompts-{identity(parsed.count, parsed.seed)}.jsonl"
    if not path.exists():
        console.print("  prompts: reading the corpus …")
        work = REPOSITORY / ".cache" / "train-tiny"
        prompts.write(prompts.of_corpus(work, parsed.count, parsed.seed), path)
    return prompts.read(path)


def said_by(parsed: argparse.Namespace, asked: Sequence[Prompt], sources: Mapping[str, Any]) -> str:
    """What continuations depend on: the prompts, the base and how it is served, and what is asked;
    how many requests at a time is left out, so that an interrupted run may go on with fewer.
    """
    served_as = parsed.url or [parsed.variant, parsed.target]
    asking = asking_of(parsed)
    what = [asking.tokens, asking.sampled_in, continuations.TEMPERATURE]
    return identity(prompts_digest(asked), sources["base"], served_as, what)


def asking_of(parsed: argparse.Namespace) -> Asking:
    """How much of what, as the command line has it."""
    return Asking(tokens=parsed.tokens, concurrency=parsed.concurrency)


def texts_of(
    parsed: argparse.Namespace, job: Job, asked: Sequence[Prompt], path: Path, console: Console
) -> list[Continuation]:
    """What the model says; the engine is asked only for what is missing."""
    have = continuations.read(path)
    if len(have) >= len(asked):
        return have
    asking = asking_of(parsed)
    with engine(parsed, job) as url, bar(console, "continuations") as shown:
        return continuations.gather(url, asked, asking, path, shown)


@contextmanager
def engine(parsed: argparse.Namespace, job: Job) -> Iterator[str]:
    """The address of an engine that serves the base: the one that was given, or a new one."""
    if parsed.url:
        yield parsed.url.rstrip("/")
        return
    # A folder that a variant makes of a model is served by its own name, through the variant.
    model = job.model if job.base == job.source else str(job.base)
    settings = {"VARIANT": parsed.variant, "MODEL": model, "TARGET": parsed.target}
    with (
        tempfile.TemporaryDirectory(prefix="preheat-") as folder,
        served(settings, Path(folder)) as running,
    ):
        yield running.url


@contextmanager
def bar(console: Console, what: str) -> Iterator[Any]:
    """A bar on a terminal's standard error; what it gives takes how many are done of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _told(entry: dict[str, float]) -> str:
    kept = [f"{entry[k]:.3f}" for k in sorted(entry) if k.startswith("kept_")]
    return f"  step {entry['step']:5d}  kept loss {' '.join(kept)}  {entry['seconds']:.0f} s"


def report_of(told: dict[str, Any]) -> str:
    """For a person."""
    lines = [f"{told['model']}: {told['data']['texts']} texts, {told['data']['said']} tokens said"]
    for when in ("before", "after"):
        kept = [f"{v:.3f}" for k, v in sorted(told[when].items()) if k.startswith("kept_")]
        lines.append(f"  kept loss {when:7} {' '.join(kept)}")
    return "\n".join([*lines, f"wrote {told['out']}, {told['seconds']:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
