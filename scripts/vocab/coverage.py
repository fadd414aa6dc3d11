"""What pruning does to texts that were not counted: tokens that stay, and tokens they become."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bake.progress import Shown
from bake.vocabulary.ids import Numbering
from bake.vocabulary.keep import keep
from bake.vocabulary.tokenizer import Tokenizer, pruned
from scripts.vocab.counting import Histogram, ids_of, kind_of
from scripts.vocab.texts import Text


@dataclass(frozen=True)
class Held:
    """Held-out texts of one origin: histograms by group, characters, and the texts."""

    origin: str
    texts: Sequence[Text]
    histograms: Mapping[str, Histogram]

    @property
    def characters(self) -> dict[str, int]:
        """By group."""
        found: dict[str, int] = {}
        for one in self.texts:
            found[one.group] = found.get(one.group, 0) + len(one.text)
        return found


def kept_at(
    tokenizer: Tokenizer, counts: Sequence[int], always: Sequence[int], size: int
) -> tuple[int, ...]:
    """The ids that stay at ``size``, by the vocabulary alone: no config asks for any here."""
    required = {*tokenizer.bytes_there(), *(one.id for one in tokenizer.added), *always}
    return keep(tokenizer.bpe(), counts, required, size).ids


def covered(held: Held, kept: Sequence[int]) -> dict[str, float]:
    """Of the tokens of each group, the share that stays."""
    ids = np.asarray(kept)
    return {g: round(float(h[ids].sum() / h.sum()), 5) for g, h in held.histograms.items()}


def by_kind(shares: Mapping[str, float], apart: Collection[str]) -> dict[str, float]:
    """Means over the groups of a kind, each group alike; those ``apart`` are kinds themselves."""
    kinds: dict[str, list[float]] = {}
    for group, share in shares.items():
        kinds.setdefault(group if group in apart else kind_of(group), []).append(share)
    return {kind: round(sum(some) / len(some), 4) for kind, some in kinds.items()}


def library(tokenizer: Tokenizer, kept: Sequence[int] | None = None) -> Any:
    """The library's tokenizer of this one, whole or pruned."""
    from tokenizers import Tokenizer as Library

    tree = tokenizer.tree
    if kept is not None:
        tree = pruned(tokenizer, Numbering(tuple(kept)), kept)
    return Library.from_str(json.dumps(tree, ensure_ascii=False))


def lengths(made: Any, held: Held, shown: Shown) -> dict[str, int]:
    """Tokens of each group, by another tokenizer."""
    found: dict[str, int] = {}
    for text, ids in ids_of(made, held.texts, shown):
        found[text.group] = found.get(text.group, 0) + len(ids)
    return found


def rows(
    held: Held, kept: Sequence[int], after: Mapping[str, int]
) -> Iterator[dict[str, str | int | float]]:
    """One line a group: coverage, and tokens for each character before and after."""
    shares, characters = covered(held, kept), held.characters
    for group, histogram in sorted(held.histograms.items()):
        before, many = int(histogram.sum()), characters[group]
        yield {
            "origin": held.origin,
            "group": group,
            "characters": many,
            "tokens_before": before,
            "tokens_after": after[group],
            "kept_share": shares[group],
            "tokens_per_character_before": round(before / many, 4),
            "tokens_per_character_after": round(after[group] / many, 4),
            "growth": round(after[group] / before, 4),
        }


def draw(name: str, size: int, tokens: int, curve: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of held-out tokens that stay, by size; one panel for each origin of texts."""
    origins = list(dict.fromkeys(point["origin"] for point in curve))
    kinds = sorted({kind for point in curve for kind in point["kinds"]})
    figure = Figure(figsize=(max(6.2, 4.6 * len(origins)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(origins), squeeze=False, sharey=True)[0]
    for axes, origin in zip(panels, origins, strict=True):
        _panel(axes, [point for point in curve if point["origin"] == origin], kinds, size)
        axes.set_title(f"held out, {origin}", loc="left", fontsize=9)
    panels[0].set_ylabel("tokens that stay, %")
    panels[0].legend(loc="lower right", frameon=False)
    figure.suptitle(f"{name}: {tokens:,} tokens pruned", x=0.01, ha="left", weight="bold")
    return figure


def _panel(
    axes: Axes, points: Sequence[Mapping[str, Any]], kinds: Sequence[str], size: int
) -> None:
    for at, kind in enumerate(kinds):
        found = [
            (point["size"], 100 * point["kinds"][kind])
            for point in points
            if kind in point["kinds"]
        ]
        if found:
            axes.plot(*zip(*found, strict=True), f"C{at}o-", markersize=3, label=kind)
    axes.axvline(size, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    ticks = [point["size"] for point in points]
    axes.set_xticks(ticks, [f"{one // 1024}k" for one in ticks], fontsize=7)
    axes.minorticks_off()
    axes.set_xlabel("tokens kept")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
