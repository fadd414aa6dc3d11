"""Training: first the backbone on the corpus, then the MTP layer against the frozen backbone.

Owns the two phases, their checkpoints and what is measured on the way. A run is a pure function
of rows, plan and seed (on one machine, with one number of threads); a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.tiny.corpus import Feed
from scripts.tiny.loss import head_argmax, head_loss
from scripts.tiny.model import TinyModel, initialise
from scripts.tiny.optimise import Optimisers, Rates
from scripts.tiny.shape import Shape

MTP_STEPS = 4
MTP_WEIGHTS = (1.0, 0.8, 0.64, 0.51)
MTP_SAMPLE = 4  # the head is paid for at one position in this many, another one each time


@dataclass(frozen=True)
class Plan:
    """How long and how wide; the schedule depends on nothing else."""

    steps: int
    mtp_steps: int
    batch: int = 8
    seed: int = 0
    bf16: bool = True
    rates: Rates = field(default_factory=Rates)
    mtp_rates: Rates = field(default_factory=lambda: Rates(muon=0.02, other=0.003, cooldown=0.6))
    log_every: int = 50
    save_every: int = 150


@dataclass
class Progress:
    """What the record says about the run so far; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Watch:
    """What looks on: a measurement on held-out text, and whoever is told of it."""

    evaluate: Callable[[TinyModel], dict[str, float]]
    report: Callable[[int, dict[str, float]], None]


def autocast(plan: Plan) -> AbstractContextManager[Any]:
    context: AbstractContextManager[Any] = torch.autocast(
        "cpu", dtype=torch.bfloat16, enabled=plan.bf16
    )
    return context


class Trainer:
    """Runs a plan from wherever the last checkpoint left it."""

    def __init__(
        self,
        shape: Shape,
        plan: Plan,
        feed: Feed,
        watch: Watch,
        folder: Path,
    ) -> None:
        self.plan, self.feed, self.watch, self.folder = plan, feed, watch, folder
        self.model = TinyModel(shape)
        initialise(self.model, plan.seed)
        backbone = [(n, p) for n, p in self.model.named_parameters() if not n.startswith("mtp.")]
        drafter = [(n, p) for n, p in self.model.named_parameters() if n.startswith("mtp.")]
        self.backbone = Optimisers(backbone, plan.rates)
        self.drafter = Optimisers(drafter, plan.mtp_rates)
        self.progress = Progress()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "training.pt"

    def resume(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.backbone.load(saved["backbone"])
        self.drafter.load(saved["drafter"])
        self.progress = Progress(**saved["progress"])

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting = self.checkpoint.with_suffix(".new")
        torch.save(
            {
                "model": self.model.state_dict(),
                "backbone": self.backbone.state(),
                "drafter": self.drafter.state(),
                "progress": vars(self.progress),
            },
            waiting,
        )
        waiting.replace(self.checkpoint)

    def run(self, *, until: int | None = None) -> None:
        """Train to the end of the plan, or to step `until`."""
        plan, progress = self.plan, self.progress
        last = plan.steps + plan.mtp_steps if until is None else until
        sums: dict[str, float] = {}
        while progress.step < last:
            begun = time.perf_counter()
            losses = self._one_step(progress.step)
            progress.step += 1
            progress.seconds += time.perf_counter() - begun
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            count = (progress.step - 1) % plan.log_every + 1
            if count == plan.log_every or progress.step in (plan.steps, last):
                self._log({name: value / count for name, value in sums.items()})
                sums = {}
            if progress.step % plan.save_every == 0 or progress.step == last:
                self.save()

    def _log(self, means: dict[str, float]) -> None:
        progress = self.progress
        with torch.no_grad(), autocast(self.plan):
            held_out = self.watch.evaluate(self.model)
        entry = {"step": progress.step, "tokens": progress.tokens, **means, **held_out}
        entry["seconds"] = round(progress.seconds, 1)
        progress.curve.append(entry)
        self.watch.report(progress.step, entry)

    def _one_step(self, step: int) -> dict[str, float]:
        ids = torch.from_numpy(self.feed.at(step))
        self.progress.tokens += ids[:, :-1].numel()
        if step < self.plan.steps:
            return self._backbone_step(ids, step)
        return self._mtp_step(ids, step - self.plan.steps)

    def _backbone_step(self, ids: Tensor, step: int) -> dict[str, float]:
        with autocast(self.plan):
            hidden = self.model.model(ids[:, :-1])
            loss = head_loss(hidden.flatten(0, 1), self.model.head, ids[:, 1:].flatten())
        loss.backward()
        self.backbone.step(step, self.plan.steps)
        return {"loss": loss.item()}

    def _mtp_step(self, ids: Tensor, step: int) -> dict[str, float]:
        with autocast(self.plan):
            losses = mtp_losses(self.model, ids[:, :-1], offset=step % MTP_SAMPLE)
            weights = torch.tensor(MTP_WEIGHTS)
            total = (torch.stack(losses) * weights).sum()
        total.backward()
        self.drafter.step(step, self.plan.mtp_steps)
        return {f"mtp_loss_{k}": loss.item() for k, loss in enumerate(losses, 1)}


def mtp_losses(model: TinyModel, ids: Tensor, *, offset: int) -> list[Tensor]:
    """Cross-entropy of each MTP step against what the frozen backbone itself would choose.

    The backbone's greedy choice after x_0..x_t stands at index t; step k at position p is asked
    for the choice at p+k, because it has been shown the tokens up to x_{p+k}.
    """
    with torch.no_grad():
        hidden = model.model(ids)
        goals = head_argmax(hidden, model.head)
        embedded = model.model.embed_tokens(ids)
        head = model.head.detach()
    time = ids.shape[1] - MTP_STEPS
    outputs = model.mtp.unrolled(hidden[:, :time], embedded, MTP_STEPS)
    losses = []
    for k, out in enumerate(outputs, 1):
        goal = goals[:, k : k + time]
        some = slice((offset + k) % MTP_SAMPLE, None, MTP_SAMPLE)
        losses.append(head_loss(out[:, some].flatten(0, 1), head, goal[:, some].flatten()))
    return losses
