"""Bits per character of held-out texts, before and after: tokens differ, characters do not.

A text's negative log-likelihood, summed over the tokens it is cut into after an end-of-text token,
divided by its characters. Whoever has fewer tokens has more of them to predict for one text.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bake.progress import Shown
from bake.vocabulary.tokenizer import read
from scripts.intervals import Interval, bootstrap
from scripts.vocab.texts import Text

MOST_CHARACTERS = 1500
START = "<|endoftext|>"


def samples(texts: Sequence[Text], per_group: int) -> list[Text]:
    """Some of each group, in their order, cut at 1500 characters."""
    room: dict[str, int] = {}
    chosen = []
    for one in texts:
        if len(one.text) > 200 and room.setdefault(one.group, per_group) > 0:
            room[one.group] -= 1
            chosen.append(Text(one.group, one.source, one.name, one.text[:MOST_CHARACTERS]))
    return chosen


def losses(folder: Path, texts: Sequence[Text], shown: Shown) -> Iterator[tuple[float, list[int]]]:
    """Of each text by the model in ``folder``: nats, and the ids it became. In float32."""
    import torch
    from tokenizers import Tokenizer

    from serve.plugin import torchvision_ops

    if torchvision_ops.needed():
        torchvision_ops.apply()
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    cut = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start = cut.token_to_id(START) or 0
    for at, text in enumerate(texts, 1):
        ids = cut.encode(text.text, add_special_tokens=False).ids
        yield _nats(model, [start, *ids]), ids
        shown(at, len(texts))


def _nats(model: Any, ids: Sequence[int]) -> float:
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        target = torch.tensor(ids[1:])
        return float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))


def compare(
    before: Path, after: Path, kept: Sequence[int], texts: Sequence[Text], shown: Shown
) -> list[dict[str, Any]]:
    """Each text by both models; ``kept`` maps new ids to old ones."""
    pairs = zip(texts, losses(before, texts, shown), list(losses(after, texts, shown)), strict=True)
    staying = set(kept)
    return [
        {
            "group": text.group,
            "source": text.source,
            "name": text.name,
            "characters": len(text.text),
            "nats_before": round(old, 4),
            "nats_after": round(new, 4),
            "tokens_before": len(old_ids),
            "tokens_after": len(new_ids),
            "dropped_before": sum(one not in staying for one in old_ids),
        }
        for text, (old, old_ids), (new, new_ids) in pairs
    ]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all texts, and of each group: bits per character, and how much they change."""
    groups = sorted({row["group"] for row in rows})
    told = {group: _figures([row for row in rows if row["group"] == group]) for group in groups}
    return {"all": _figures(rows), **told}


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("nats_before", "nats_after", "characters", "tokens_before", "dropped_before")
    columns = np.array([[row[key] for key in keys] for row in rows], np.float64)
    sums = columns.sum(axis=0)
    bits = sums[:2] / math.log(2) / sums[2]
    change: Interval = bootstrap(columns, lambda some: some[:, 1] / some[:, 0] - 1)
    return {
        "texts": len(rows),
        "bits_per_character_before": round(float(bits[0]), 4),
        "bits_per_character_after": round(float(bits[1]), 4),
        "change": change.describe(),
        "dropped_share": round(float(sums[4] / sums[3]), 5),
    }


def tokens_of(folder: Path) -> int:
    """Tokens of the model in ``folder``."""
    return len(read(folder / "tokenizer.json").texts)
