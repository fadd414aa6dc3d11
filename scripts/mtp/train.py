# mypy: disallow-untyped-decorators=False
"""Training of one MTP head beside its frozen base: batches, optimiser, checkpoints, curve.

A run is a pure function of the texts, the plan and its seed (on one machine, with one number of
threads); a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.mtp.base import Checkpoint, head_of
from scripts.mtp.features import Text
from scripts.mtp.loss import Asked, Batch, batch_of, losses, step_weights
from scripts.tiny.optimise import Optimisers, Rates

Report = Callable[[dict[str, float]], None]
# Of so many texts one is kept for the curve, and never trained on.
KEPT_IN = 40


class OtherRun(RuntimeError):
    """A checkpoint of another plan, base or text lies in the work folder."""


@dataclass(frozen=True)
class Plan:
    """How long, how wide, how fast: cooler than from scratch, and cooling almost all the way.

    `every`: the output head is paid for at one place in so many. `beta` as in `scripts.mtp.loss`.
    """

    steps: int = 300
    batch: int = 16
    seed: int = 0
    unroll: int = 4
    beta: float = 0.6
    every: int = 4
    device: str = "cpu"
    amp: bool = True
    rates: Rates = field(
        default_factory=lambda: Rates(muon=0.01, other=0.0015, warmup=0.03, cooldown=0.9)
    )
    log_every: int = 50


@dataclass
class Progress:
    """How far a run is; saved with each checkpoint."""

    step: int = 0
    seconds: float = 0.0
    places: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Runs a plan from wherever its checkpoint left it. `identity` is what it is a run of."""

    def __init__(
        self, checkpoint: Checkpoint, texts: Sequence[Text], plan: Plan, folder: Path, identity: str
    ) -> None:
        self.plan, self.folder = plan, folder
        self.identity = identity
        self.train = [text for n, text in enumerate(texts) if n % KEPT_IN]
        self.kept = [text for n, text in enumerate(texts) if n % KEPT_IN == 0]
        self.order = order(self.train, plan)
        self.mtp = head_of(checkpoint, plan.device)
        self.embedding = checkpoint.tensors["model.embed_tokens.weight"].to(plan.device)
        self.head = checkpoint.head.to(plan.device)
        self.weights = step_weights(plan.unroll, plan.beta)
        self.optimisers = Optimisers(self.mtp.named_parameters(), plan.rates)
        self.progress = Progress()

    @property
    def path(self) -> Path:
        """Where the run is saved."""
        return self.folder / "training.pt"

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        :raises OtherRun: it is another run's.
        """
        if not self.path.exists():
            return
        saved = torch.load(self.path, weights_only=True, map_location=self.plan.device)
        if saved["identity"] != self.identity:
            raise OtherRun(
                f"{self.path}: is of another run\nhint: move it away, or give another --work"
            )
        self.mtp.load_state_dict(saved["mtp"])
        self.optimisers.load(saved["optimisers"])
        self.progress = Progress(**saved["progress"])

    def save(self) -> None:
        """Whole or not at all."""
        waiting = self.path.with_suffix(".new")
        torch.save(
            {
                "identity": self.identity,
                "mtp": self.mtp.state_dict(),
                "optimisers": self.optimisers.state(),
                "progress": asdict(self.progress),
            },
            waiting,
        )
        waiting.replace(self.path)

    def run(self, report: Report, shown: Callable[[int, int], None]) -> None:
        """Train to the end of the plan."""
        plan, progress = self.plan, self.progress
        if not progress.curve:
            self._log({}, report)
        sums: list[dict[str, float]] = []
        while progress.step < plan.steps:
            begun = time.perf_counter()
            sums.append(self._step(progress.step))
            progress.step += 1
            progress.seconds += time.perf_counter() - begun
            shown(progress.step, plan.steps)
            if progress.step % plan.log_every == 0 or progress.step == plan.steps:
                self._log({k: sum(s[k] for s in sums) / len(sums) for k in sums[0]}, report)
                sums = []
                self.save()

    def _step(self, step: int) -> dict[str, float]:
        batch = batch_of([self.train[i] for i in self.order[step]], self.plan.device)
        found = self._losses(batch, Asked(self.plan.unroll, self.plan.every, step))
        total = torch.stack([w * x for w, x in zip(self.weights, found, strict=True)]).sum()
        total.backward()
        self.optimisers.step(step, self.plan.steps)
        self.progress.places += int((batch.length - batch.first - 1).sum())
        return {f"loss_{k}": x.item() for k, x in enumerate(found, 1)}

    def _losses(self, batch: Batch, asked: Asked) -> list[Tensor]:
        kind = torch.device(self.plan.device).type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.plan.amp):
            return losses(self.mtp, self.embedding, self.head, batch, asked)

    def _log(self, means: dict[str, float], report: Report) -> None:
        entry: dict[str, float] = {"step": self.progress.step}
        entry |= {k: round(v, 4) for k, v in means.items()}
        entry |= {f"kept_{k}": round(v, 4) for k, v in self._on_kept().items()}
        entry["seconds"] = round(self.progress.seconds, 1)
        self.progress.curve.append(entry)
        report(entry)

    @torch.no_grad()
    def _on_kept(self) -> dict[str, float]:
        """Loss on the texts that are not trained on; the mean over batches of equal texts."""
        size = self.plan.batch
        parts = [self.kept[i : i + size] for i in range(0, len(self.kept), size)]
        asked = Asked(self.plan.unroll)
        every = [self._losses(batch_of(p, self.plan.device), asked) for p in parts]
        means = [
            sum(x[k].item() for x in every) / max(len(every), 1) for k in range(self.plan.unroll)
        ]
        return {f"loss_{k}": value for k, value in enumerate(means, 1)}


def order(texts: Sequence[Text], plan: Plan) -> list[list[int]]:
    """Which texts each step sees: every epoch all of them, those of like length together."""
    rng = random.Random(plan.seed)  # noqa: S311  a seeded order, no secret
    steps: list[list[int]] = []
    while len(steps) < plan.steps and texts:
        shuffled = rng.sample(range(len(texts)), len(texts))
        # Sorted within a stretch of batches: little padding, and still another order each epoch.
        stretch = 8 * plan.batch
        batches = []
        for begin in range(0, len(shuffled), stretch):
            some = sorted(shuffled[begin : begin + stretch], key=lambda i: len(texts[i].ids))
            batches += [some[i : i + plan.batch] for i in range(0, len(some), plan.batch)]
        steps += rng.sample(batches, len(batches))
    return steps[: plan.steps]


def tensors_of(mtp: torch.nn.Module) -> dict[str, Tensor]:
    """The head as it ships: BF16, under vLLM's names."""
    return {
        f"mtp.{name}": p.detach().bfloat16().cpu().contiguous()
        for name, p in sorted(mtp.state_dict().items())
    }


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for a record, its step weights among it."""
    weights = [round(w, 4) for w in step_weights(plan.unroll, plan.beta)]
    return {**asdict(plan), "step_weights": weights}
