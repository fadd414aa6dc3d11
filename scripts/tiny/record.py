# mypy: disallow-untyped-decorators=False
"""What a run is measured by, and the record that ships: `training.json`.

Owns held-out perplexity, the unigram baseline, the offline estimate of speculative acceptance and
the facts of the machine. Every number in the record is produced here or by the trainer.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812  the name everyone knows

from scripts.tiny.corpus import Item, Rows
from scripts.tiny.markup import opening
from scripts.tiny.model import TinyModel
from scripts.tiny.tokenizer import END_OF_TEXT, TURN_END, marker_id
from scripts.tiny.train import MTP_STEPS

SCHEMA = "preheat.tiny-training/1"
LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy", "rich")


@dataclass(frozen=True)
class Score:
    """Summed negative log-likelihood of one source, in nats."""

    tokens: int
    model: float
    unigram: float

    def as_json(self) -> dict[str, float | int]:
        return {
            "tokens": self.tokens,
            "perplexity": round(math.exp(self.model / self.tokens), 3),
            "unigram_perplexity": round(math.exp(self.unigram / self.tokens), 3),
        }


def unigrams(rows: dict[str, Rows], vocab: int) -> dict[str, torch.Tensor]:
    """Log-probabilities of a unigram model per source, add-one smoothed, from training tokens."""
    table = {}
    for group, found in rows.items():
        counts = np.bincount(found.reshape(-1), minlength=vocab) + 1.0
        table[group] = torch.from_numpy(np.log(counts / counts.sum()))
    return table


@torch.no_grad()
def scores(
    model: TinyModel, tok: Tokenizer, items: Sequence[Item], base: dict[str, torch.Tensor]
) -> dict[str, Score]:
    """Per source: every token of each text but its first, from an empty state."""
    found: dict[str, Score] = {}
    for item in items:
        ids = torch.tensor(tok.encode(item.text).ids)
        nll = F.cross_entropy(model.logits(ids[None, :-1])[0].float(), ids[1:], reduction="sum")
        old = found.get(item.group, Score(0, 0.0, 0.0))
        found[item.group] = Score(
            old.tokens + len(ids) - 1,
            old.model + nll.item(),
            old.unigram - base[item.group][ids[1:]].sum().item(),
        )
    return found


def overall(found: dict[str, Score]) -> Score:
    parts = list(found.values())
    return Score(
        sum(s.tokens for s in parts), sum(s.model for s in parts), sum(s.unigram for s in parts)
    )


@torch.no_grad()
def greedy(model: TinyModel, ids: list[int], stops: set[int], limit: int) -> list[int]:
    """Greedy continuation without a cache: short texts, small model, no second code path."""
    out = list(ids)
    while len(out) < len(ids) + limit:
        nxt = int(model.logits(torch.tensor([out]))[0, -1].argmax())
        out.append(nxt)
        if nxt in stops:
            break
    return out


def prompts(tok: Tokenizer, items: Sequence[Item], plain: int = 60) -> list[list[int]]:
    """What a held-out item is continued from: the chat prompt, or the first tokens of a text."""
    found = []
    for item in items:
        if item.prompt:
            found.append(tok.encode(item.prompt + opening("")).ids)
        else:
            found.append(tok.encode(item.text).ids[:plain])
    return found


@torch.no_grad()
def agreements(model: TinyModel, ids: list[int], start: int, filler: int) -> list[int]:
    """How many of the K drafts are right at each place of the model's own greedy text.

    The text being the model's own choices, draft k is right when it equals the text. Place p has
    just seen the token p+1; past the end of the text everything counts as wrong.
    """
    time = len(ids) - 2
    if time < start:
        return []
    whole = torch.tensor([ids + [filler] * MTP_STEPS])
    hidden = model.model(whole)[:, :time]
    outputs = model.mtp.unrolled(hidden, model.model.embed_tokens(whole), MTP_STEPS)
    drafts = torch.stack([F.linear(out[0], model.head).argmax(-1) for out in outputs], 1)
    ends = torch.tensor(ids + [-1] * MTP_STEPS).unfold(0, MTP_STEPS, 1)[2 : 2 + time]
    right = (drafts == ends).long().cumprod(1).sum(1)
    return [int(n) for n in right[start - 1 :]]


def walk(accepted: Sequence[int]) -> list[int]:
    """The places that serving would stop at: after a accepted drafts the next is a+1 further."""
    visited, place = [], 0
    while place < len(accepted):
        visited.append(accepted[place])
        place += 1 + accepted[place]
    return visited


def acceptance(steps: Sequence[int]) -> dict[str, Any]:
    """Rate of each draft given that all before it were accepted, and the mean length."""
    at_least = [sum(n >= k for n in steps) for k in range(MTP_STEPS + 1)]
    rates = [
        round(passed / reached, 4) if reached else 0.0
        for reached, passed in itertools.pairwise(at_least)
    ]
    length = 1 + sum(steps) / len(steps) if steps else 0.0
    return {"steps": len(steps), "per_k_given_previous": rates, "mean_length": round(length, 3)}


def offline_acceptance(
    model: TinyModel, tok: Tokenizer, items: Sequence[Item], *, limit: int = 64
) -> dict[str, Any]:
    """Greedy speculative decoding, simulated on continuations of held-out prompts."""
    filler = marker_id(tok, END_OF_TEXT)
    stops = {marker_id(tok, TURN_END), filler}
    kinds: dict[str, list[int]] = {"chat": [], "text": []}
    for item, ids in zip(items, prompts(tok, items), strict=True):
        text = greedy(model, ids, stops, limit)
        kinds["chat" if item.prompt else "text"] += walk(agreements(model, text, len(ids), filler))
    both = kinds["chat"] + kinds["text"]
    return {"all": acceptance(both), **{kind: acceptance(n) for kind, n in kinds.items()}}


def machine_facts() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "preloaded": [Path(p).name for p in os.environ.get("LD_PRELOAD", "").split(":") if p],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}
