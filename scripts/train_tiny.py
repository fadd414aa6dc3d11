"""Train the small model that ships in weights/tiny, from packages to a folder vLLM can serve.

Thin: arguments and progress. The work is in `scripts.tiny`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if __package__ in (None, ""):  # run as a file: let `scripts` be found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.tiny.packages import FetchError
from scripts.tiny.pipeline import (
    Launch,
    PipelineError,
    finish,
    prepare,
    start_trainer,
    use_threads,
)
from scripts.tiny.shape import Shape
from scripts.tiny.tokenizer import TokenizerError
from scripts.tiny.train import Plan
from serve.cli import positive

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """examples:
  python -m scripts.train_tiny                         the model that ships (about 50 minutes)
  python -m scripts.train_tiny --resume                go on after an interruption
  python -m scripts.train_tiny --steps 40 --mtp-steps 20 --out /tmp/tiny    a quick look

About 1.6 times as fast on two cores, and how the model that ships was trained:
  LD_PRELOAD=libtcmalloc_minimal.so.4:.../libiomp5.so python -m scripts.train_tiny
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_tiny",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=positive, default=1700, help="steps of the backbone")
    parser.add_argument("--mtp-steps", type=positive, default=500, help="steps of the MTP layer")
    parser.add_argument("--batch", type=positive, default=8, help="rows of 512 tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--talks", type=positive, default=70_000, help="conversations to template")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "train-tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "weights" / "tiny")
    return parser


def run(args: argparse.Namespace, console: Console) -> None:
    begun = time.time()
    use_threads(args.threads)
    plan = Plan(
        steps=args.steps, mtp_steps=args.mtp_steps, batch=args.batch, seed=args.seed, bf16=args.bf16
    )
    args.work.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        console.print(f"[dim]{time.time() - begun:7.1f}s[/]  {line}")

    prepared = prepare(args.work, Shape(), talks=args.talks, seed=args.seed, say=say)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=plan.steps + plan.mtp_steps)

        def report(step: int, entry: dict[str, float]) -> None:
            bar.update(task, completed=step)
            names = [n for n in entry if "loss" in n or n in ("held_out_chat", "held_out_text")]
            say(f"step {step}: " + ", ".join(f"{n} {entry[n]:.3f}" for n in names))

        trainer = start_trainer(prepared, plan, report, work=args.work, resume=args.resume)
        trainer.run()
    launch = Launch(["train_tiny", *sys.argv[1:]], begun, say)
    data = finish(trainer, prepared, args.out, launch)
    score = data["held_out"]["overall"]
    say(
        f"held-out perplexity {score['perplexity']} (unigram {score['unigram_perplexity']}), "
        f"mean acceptance length {data['offline_acceptance']['all']['mean_length']} offline"
    )


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    try:
        run(args, console)
    except (FetchError, PipelineError, TokenizerError, OSError) as error:
        console.print(f"train_tiny: {error}", markup=False)
        return 1
    except subprocess.CalledProcessError as error:
        console.print(f"train_tiny: {error}\nhint: is dpkg-deb installed?", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("train_tiny: interrupted\nhint: go on with --resume", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
