"""The corpus: documents and conversations, split, tokenised, packed into rows, and described.

Owns the held-out rule, the mixture and the order in which rows are seen. Everything is a pure
function of the packages and the seed.

Held-out rule: a document is held out when the SHA-256 of "source/name" is 0 modulo 50. A question
is held out by the same rule on its own wording, and a conversation with any held-out question is
never trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from scripts.tiny.chat import ALWAYS_TRAINED, Facts, conversations
from scripts.tiny.facts import common_senses, read_countries, read_functions
from scripts.tiny.markup import Conversation, prompt, render
from scripts.tiny.sources import Document, plain_documents, read_senses, read_verses
from scripts.tiny.tokenizer import END_OF_TEXT, marker_id

Rows: TypeAlias = npt.NDArray[np.uint16]

HELD_OUT_IN = 50
HELD_OUT_BYTES = 188_000
WORDS = 3000


@dataclass(frozen=True)
class Item:
    """One text of the corpus; `prompt` is empty for plain text."""

    source: str
    name: str
    text: str
    prompt: str = ""

    @property
    def group(self) -> str:
        """The source as the mixture knows it: all kinds of chat are one."""
        return self.source.split("/")[0]


@dataclass(frozen=True)
class Split:
    train: list[Item]
    held_out: list[Item]


def is_held_out(source: str, name: str) -> bool:
    digest = hashlib.sha256(f"{source}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_IN == 0


def talk_is_held_out(talk: Conversation) -> bool:
    questions = [turn.content for turn in talk.turns if turn.role == "user"]
    return any(q not in ALWAYS_TRAINED and is_held_out("chat", q) for q in questions)


def split(documents: Iterable[Document], talks: Iterable[Conversation]) -> Split:
    """Sort everything to one side or the other; a text is held out at most once."""
    train: list[Item] = []
    held_out: dict[str, Item] = {}
    for document in documents:
        item = Item(document.source, document.name, document.text)
        if is_held_out(document.source, document.name):
            held_out[f"{item.source}/{item.name}"] = item
        else:
            train.append(item)
    for talk in talks:
        item = Item(talk.source, talk.name, render(talk), prompt(talk))
        if talk_is_held_out(talk):
            held_out.setdefault(item.text, item)
        else:
            train.append(item)
    return Split(train, list(held_out.values()))


def read_facts(tree: Path) -> Facts:
    senses = common_senses(read_senses(tree), tree, WORDS)
    return Facts(read_countries(tree), senses, read_functions(), read_verses(tree))


def read_corpus(tree: Path, *, talks: int, seed: int) -> Split:
    return split(plain_documents(tree), conversations(read_facts(tree), count=talks, seed=seed))


def digest(items: Iterable[Item]) -> str:
    """SHA-256 over every text in order, each with its source and name."""
    total = hashlib.sha256()
    for item in items:
        for part in (item.source, item.name, item.text):
            total.update(part.encode() + b"\0")
    return total.hexdigest()


def lines_for_tokenizer(items: Sequence[Item]) -> Iterator[str]:
    """All training texts but most of the chat, whose few phrasings would take over the merges."""
    for number, item in enumerate(items):
        if item.group != "chat" or number % 4 == 0:
            yield item.text


def pack(items: Sequence[Item], tok: Tokenizer, width: int) -> dict[str, Rows]:
    """Rows of `width` tokens per group. A row starts where a text starts, or where one goes on."""
    stop = marker_id(tok, END_OF_TEXT)
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    packed = {}
    for group, members in sorted(groups.items()):
        encoded = tok.encode_batch_fast([item.text for item in members])
        packed[group] = _rows([[*e.ids, stop] for e in encoded], width, whole=group == "chat")
    return packed


def _rows(texts: Iterable[list[int]], width: int, *, whole: bool) -> Rows:
    """Fill rows in order; what does not fit goes on in the next row.

    A conversation (`whole`) is instead begun again there: its end without its beginning teaches
    nothing.
    """
    rows: list[list[int]] = []
    row: list[int] = []
    for text in texts:
        rest = text
        while rest:
            room = width - len(row)
            row += rest[:room]
            fits = len(rest) <= room
            if len(row) == width:
                rows.append(row)
                row = []
            again = whole and not fits and room < width
            rest = [] if fits else (rest if again else rest[room:])
    table: Rows = np.array(rows, dtype=np.uint16).reshape(-1, width)
    return table


# Shares of a batch, in thousandths: first general text, then mostly the chat it will be used for.
MIXTURES: tuple[tuple[float, dict[str, int]], ...] = (
    (
        0.65,
        {
            "chat": 450,
            "kjv": 120,
            "wordnet": 140,
            "python-docs": 100,
            "python-stdlib": 70,
            "postgresql-docs": 70,
            "sqlite-docs": 50,
        },
    ),
    (
        1.0,
        {
            "chat": 640,
            "kjv": 90,
            "wordnet": 90,
            "python-docs": 60,
            "python-stdlib": 40,
            "postgresql-docs": 50,
            "sqlite-docs": 30,
        },
    ),
)


class Feed:
    """Which rows each step sees: fixed by the seed, so that a resumed run sees the same ones."""

    def __init__(self, rows: dict[str, Rows], *, steps: int, batch: int, seed: int) -> None:
        self.rows = rows
        self.batch = batch
        rng = np.random.default_rng(seed)
        self.order: list[tuple[str, int]] = []
        cursors = {group: _endless(len(found), rng) for group, found in rows.items()}
        begun = 0
        for until, shares in MIXTURES:
            wanted = int(steps * batch * until) - begun
            begun += wanted
            self.order += _draw(wanted, shares, cursors, rng)

    def at(self, step: int) -> npt.NDArray[np.int64]:
        picked = self.order[step * self.batch : (step + 1) * self.batch]
        return np.stack([self.rows[group][i] for group, i in picked]).astype(np.int64)


def _draw(
    wanted: int, shares: dict[str, int], cursors: dict[str, Iterator[int]], rng: np.random.Generator
) -> list[tuple[str, int]]:
    names = sorted(set(shares) & set(cursors))
    weights = np.array([shares[name] for name in names], dtype=np.float64)
    picks = rng.choice(len(names), size=wanted, p=weights / weights.sum())
    return [(names[p], next(cursors[names[p]])) for p in picks]


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (int(i) for i in rng.permutation(count))


def held_out_sample(items: Sequence[Item]) -> list[Item]:
    """What ships in heldout.jsonl: some of every source, short enough for a row, within bounds."""
    chosen: list[Item] = []
    groups = sorted({item.group for item in items})
    for group in groups:
        budget = HELD_OUT_BYTES * (4 if group == "chat" else 1) // (len(groups) + 3)
        for item in (i for i in items if i.group == group):
            short = Item(item.source, item.name, _beginning(item), item.prompt)
            size = len(_line(short).encode()) + 1
            if size <= budget:
                chosen.append(short)
                budget -= size
    return chosen


def _beginning(item: Item, limit: int = 1500) -> str:
    if item.prompt or len(item.text) <= limit:
        return item.text
    return item.text[:limit].rsplit("\n", 1)[0] + "\n"


def _line(item: Item) -> str:
    row = {"source": item.source, "name": item.name, "prompt": item.prompt, "text": item.text}
    return json.dumps(row, ensure_ascii=False)


def write_held_out(items: Iterable[Item], path: Path) -> None:
    path.write_text("".join(_line(item) + "\n" for item in items), encoding="utf-8")


def read_held_out(path: Path) -> list[Item]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Item(**json.loads(line)) for line in lines]


def describe(split_: Split, rows: dict[str, Rows]) -> dict[str, dict[str, int]]:
    """Counts per group: texts, UTF-8 bytes, tokens (as packed), held-out texts."""
    table: dict[str, dict[str, int]] = {}
    for item in split_.train:
        row = table.setdefault(item.group, {"texts": 0, "bytes": 0, "tokens": 0, "held_out": 0})
        row["texts"] += 1
        row["bytes"] += len(item.text.encode())
    for item in split_.held_out:
        if item.group in table:
            table[item.group]["held_out"] += 1
    for group, found in rows.items():
        table[group]["tokens"] = int(found.size)
    return table
