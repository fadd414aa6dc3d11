# mypy: disallow-untyped-decorators=False
"""The run from packages to the model folder, one stage after the other.

Owns the order of the stages and what is kept in the work directory; the command line above it
owns arguments and rendering only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from scripts.tiny import corpus, record
from scripts.tiny.checkpoint import sha256_of, write_model_folder
from scripts.tiny.corpus import Feed, Item, Rows, Split
from scripts.tiny.loss import head_loss
from scripts.tiny.model import TinyModel
from scripts.tiny.packages import PACKAGES, fetch_all
from scripts.tiny.shape import Shape
from scripts.tiny.tokenizer import train_tokenizer
from scripts.tiny.train import Plan, Trainer, Watch, mtp_losses

ROW = 513  # 512 positions and the token after the last
SIZE_LIMIT = 16_000_000
Say = Callable[[str], None]
Report = Callable[[int, dict[str, float]], None]


class PipelineError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


_STDLIB = {
    "name": "CPython standard library",
    "kind": "python",
    "licence": "PSF-2.0",
    "use": "plain text and chat facts",
}


@dataclass(frozen=True)
class Launch:
    """How this process was started, and where its progress is told."""

    command: Sequence[str]
    begun: float
    say: Say


@dataclass(frozen=True)
class Prepared:
    split: Split
    rows: dict[str, Rows]
    held_out_rows: dict[str, Rows]
    sample: list[Item]
    tok: Tokenizer
    versions: dict[str, str]
    shape: Shape


def prepare(work: Path, shape: Shape, *, talks: int, seed: int, say: Say) -> Prepared:
    say("packages: fetching and unpacking")
    found = fetch_all(work / "sources")
    say("corpus: reading, templating and splitting")
    split = corpus.read_corpus(work / "sources" / "tree", talks=talks, seed=seed)
    say("tokenizer: learning merges")
    tok = train_tokenizer(corpus.lines_for_tokenizer(split.train), shape.vocab)
    say("corpus: tokenising and packing")
    return Prepared(
        split=split,
        rows=corpus.pack(split.train, tok, ROW),
        held_out_rows=corpus.pack(split.held_out, tok, ROW),
        sample=corpus.held_out_sample(split.held_out),
        tok=tok,
        versions=found,
        shape=shape,
    )


def start_trainer(
    prepared: Prepared, plan: Plan, report: Report, *, work: Path, resume: bool
) -> Trainer:
    steps = plan.steps + plan.mtp_steps
    feed = Feed(prepared.rows, steps=steps, batch=plan.batch, seed=plan.seed)
    watch = Watch(lambda model: quick_evaluation(model, prepared.held_out_rows), report)
    trainer = Trainer(prepared.shape, plan, feed, watch, work)
    if trainer.checkpoint.exists() and not resume:
        raise PipelineError(
            f"{trainer.checkpoint}: a checkpoint of an earlier run is in the way\n"
            "hint: --resume to go on with it, another --work, or remove the file"
        )
    if resume:
        _resume(trainer)
    return trainer


def _resume(trainer: Trainer) -> None:
    if not trainer.checkpoint.exists():
        raise PipelineError(
            f"{trainer.checkpoint}: no checkpoint to resume from\nhint: run without --resume"
        )
    try:
        trainer.resume()
    except Exception as error:  # torch.load names no common base for what a bad file raises
        raise PipelineError(
            f"{trainer.checkpoint}: not a checkpoint of this plan ({error})\n"
            "hint: remove the file and start again"
        ) from error


@torch.no_grad()
def quick_evaluation(model: TinyModel, rows: dict[str, Rows], count: int = 4) -> dict[str, float]:
    """Held-out loss on a few packed rows of chat and of everything else."""
    sums = {}
    plain = [found[:1] for group, found in rows.items() if group != "chat" and len(found)]
    for name, tables in (("chat", [rows["chat"][:count]]), ("text", plain)):
        ids = torch.cat([torch.from_numpy(t.astype("int64")) for t in tables])
        hidden = model.model(ids[:, :-1]).flatten(0, 1)
        sums[f"held_out_{name}"] = head_loss(hidden, model.head, ids[:, 1:].flatten()).item()
        losses = mtp_losses(model, ids[:, :-1], offset=0)
        sums |= {f"held_out_mtp_{name}_{k}": x.item() for k, x in enumerate(losses, 1)}
    return sums


def finish(trainer: Trainer, prepared: Prepared, out: Path, launch: Launch) -> dict[str, Any]:
    """Write the model folder, measure what was written, and write the record beside it."""
    launch.say(f"writing {out}")
    write_model_folder(trainer.model, prepared.tok, out)
    corpus.write_held_out(prepared.sample, out / "heldout.jsonl")
    # What is measured is what ships: the weights as rounded to BF16.
    for p in trainer.model.parameters():
        p.data = p.data.to(torch.bfloat16).float()
    data = _measurements(trainer, prepared, out, launch.say)
    # Of this launch only; train_seconds and the tokens are of all launches that a run took.
    data |= {
        "command": list(launch.command),
        "wall_seconds": round(time.time() - launch.begun, 1),
    }
    text = json.dumps(data, indent=1, ensure_ascii=False)
    (out / "training.json").write_text(text + "\n", encoding="utf-8")
    check_size(out)
    return data


def _measurements(trainer: Trainer, prepared: Prepared, out: Path, say: Say) -> dict[str, Any]:
    model, plan, progress = trainer.model.eval(), trainer.plan, trainer.progress
    say("measuring held-out perplexity")
    base = record.unigrams(prepared.rows, model.shape.vocab)
    found = record.scores(model, prepared.tok, prepared.sample, base)
    say("measuring drafts on held-out prompts")
    drafts = record.offline_acceptance(model, prepared.tok, _some(prepared.sample))
    return {
        "schema": record.SCHEMA,
        "seed": plan.seed,
        "plan": asdict(plan),
        "versions": record.versions(),
        "machine": record.machine_facts(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "packages": [asdict(p) | {"version": prepared.versions[p.name]} for p in PACKAGES]
        + [_STDLIB | {"version": record.versions()["python"]}],
        "corpus": {
            "sources": corpus.describe(prepared.split, prepared.rows),
            "sha256_train": corpus.digest(prepared.split.train),
            "sha256_held_out": corpus.digest(prepared.split.held_out),
            "held_out_rule": corpus.__doc__,
            "mixtures": [{"until": until, "per_mille": mix} for until, mix in corpus.MIXTURES],
        },
        "tokens_seen": progress.tokens,
        "train_seconds": round(progress.seconds, 1),
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
        "curve": [{k: round(v, 4) for k, v in entry.items()} for entry in progress.curve],
        "held_out": {
            "overall": record.overall(found).as_json(),
            "sources": {group: score.as_json() for group, score in sorted(found.items())},
        },
        "offline_acceptance": drafts,
        "sha256": {
            name: sha256_of(out / name)
            for name in ("model.safetensors", "tokenizer.json", "config.json", "heldout.jsonl")
        },
    }


def _some(items: Sequence[Item], chat: int = 60, plain: int = 5) -> list[Item]:
    """A fixed part of the sample: generating without a cache is slow."""
    left: dict[str, int] = {}
    chosen = []
    for item in items:
        left.setdefault(item.group, chat if item.prompt else plain)
        if left[item.group] > 0:
            left[item.group] -= 1
            chosen.append(item)
    return chosen


def check_size(out: Path) -> int:
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    if size > SIZE_LIMIT:
        raise PipelineError(
            f"{out}: {size:,} bytes, expected at most {SIZE_LIMIT:,}\n"
            "hint: lower HELD_OUT_BYTES in scripts/tiny/corpus.py or the vocabulary"
        )
    return size


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)
