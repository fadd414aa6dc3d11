"""Plain text: what each package holds, as documents with a source and a name.

Owns the readers. A document is what the held-out split is made by, so a name must be stable.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

MAX_DOCUMENT = 120_000  # characters; longer files are cut, a changelog teaches nothing


@dataclass(frozen=True)
class Document:
    source: str
    name: str
    text: str


@dataclass(frozen=True)
class Verse:
    book: str
    chapter: int
    verse: int
    text: str


@dataclass(frozen=True)
class Sense:
    word: str
    kind: str
    gloss: str
    examples: tuple[str, ...]
    synonyms: tuple[str, ...]
    key: str = ""  # part of speech and file offset: what WordNet's index files point to


def plain_documents(tree: Path) -> list[Document]:
    """Every plain-text document, in a fixed order."""
    return [
        *kjv_documents(read_verses(tree)),
        *wordnet_documents(read_senses(tree)),
        *_files("python-docs", tree / "usr/share/doc/python3.11/html/_sources", "*.txt"),
        *_html("postgresql-docs", tree / "usr/share/doc/postgresql-doc-15/html"),
        *_html("sqlite-docs", tree / "usr/share/doc/sqlite3"),
        *stdlib_documents(Path(sysconfig.get_path("stdlib"))),
    ]


def read_verses(tree: Path) -> list[Verse]:
    """The King James text, through the package's own reader (the data file is compressed)."""
    command = [str(tree / "usr/bin/bible"), "-p", str(tree / "usr/lib"), "gen1:1-rev22:21"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse_verses(out)


def parse_verses(text: str) -> list[Verse]:
    verses: list[Verse] = []
    book, chapter = "", 0
    for block in re.split(r"\n(?=\s*\d+ |\S)", text):
        line = " ".join(block.split())
        heading = re.fullmatch(r"((?:\d )?[A-Z][A-Za-z ]+) (\d+)", line)
        verse = re.match(r"(\d+) (.+)", line)
        if heading:
            book, chapter = heading[1], int(heading[2])
        elif verse and block.startswith(" "):
            verses.append(Verse(book, chapter, int(verse[1]), verse[2]))
        elif verses and line:
            last = verses.pop()
            verses.append(Verse(last.book, last.chapter, last.verse, f"{last.text} {line}"))
    return verses


def kjv_documents(verses: list[Verse]) -> Iterator[Document]:
    """One document per chapter."""
    chapters: dict[str, list[str]] = {}
    for v in verses:
        chapters.setdefault(f"{v.book} {v.chapter}", []).append(f"{v.verse} {v.text}")
    for name, lines in chapters.items():
        yield Document("kjv", name, f"{name}\n\n" + "\n".join(lines) + "\n")


_POS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


def read_senses(tree: Path) -> list[Sense]:
    """Every WordNet synset under its first word, in file order."""
    senses = []
    for part in ("noun", "verb", "adj", "adv"):
        path = tree / "usr/share/wordnet" / f"data.{part}"
        for line in path.read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                senses.append(parse_sense(line))
    return senses


def parse_sense(line: str) -> Sense:
    fields, gloss = line.split(" | ", 1)
    columns = fields.split()
    count = int(columns[3], 16)
    words = [re.sub(r"\(.*\)$", "", columns[4 + 2 * i]).replace("_", " ") for i in range(count)]
    meaning, *rest = re.split(r'; "', gloss.strip())
    examples = tuple(part.strip().strip('"') for part in rest)
    part = "a" if columns[2] == "s" else columns[2]
    return Sense(
        words[0],
        _POS[columns[2]],
        meaning.strip().rstrip(".;"),
        examples,
        tuple(words[1:]),
        part + columns[0],
    )


def wordnet_documents(senses: list[Sense], group: int = 60) -> Iterator[Document]:
    """Dictionary pages: runs of neighbouring synsets, which are about related things."""
    for start in range(0, len(senses), group):
        page = senses[start : start + group]
        yield Document("wordnet", f"page-{start // group}", "\n".join(map(_entry, page)) + "\n")


def _entry(s: Sense) -> str:
    also = f" (also {', '.join(s.synonyms)})" if s.synonyms else ""
    shown = "".join(f' For example: "{e}".' for e in s.examples[:1])
    return f"{s.word}{also}, {s.kind}: {s.gloss}.{shown}"


def _files(source: str, folder: Path, pattern: str) -> Iterator[Document]:
    for path in sorted(folder.rglob(pattern)):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield Document(source, path.relative_to(folder).as_posix(), text[:MAX_DOCUMENT])


def _html(source: str, folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.html")):
        text = html_text(path.read_text(encoding="utf-8", errors="replace"))
        if len(text) > 200:
            yield Document(source, path.relative_to(folder).as_posix(), text[:MAX_DOCUMENT])


class _Text(HTMLParser):
    """Visible text with line breaks at block ends; navigation and scripts are dropped."""

    SKIP = frozenset({"script", "style", "head", "svg"})
    BLOCK = frozenset({"p", "div", "li", "tr", "pre", "h1", "h2", "h3", "h4", "dt", "dd", "br"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping = 0
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skipping += tag in self.SKIP
        self.pre += tag == "pre"
        if tag in self.BLOCK:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in self.SKIP and self.skipping > 0
        self.pre -= tag == "pre" and self.pre > 0
        if tag in self.BLOCK:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    text = re.sub(r"[ \t]+\n", "\n", "".join(parser.parts).replace("\xa0", " "))
    text = re.sub(r"\n[ \t]*(?=\S)", "\n", text) if "\n" in text else text
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


_NOT_STDLIB = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo"}


def stdlib_documents(folder: Path) -> Iterator[Document]:
    """Source of the running CPython's library, tests and bundled programs left out."""
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if _NOT_STDLIB.isdisjoint(relative.parts) and "config-" not in relative.parts[0]:
            text = path.read_text(encoding="utf-8", errors="replace")
            if len(text) > 400 and "encodings" not in relative.parts:
                yield Document("python-stdlib", relative.as_posix(), text[:MAX_DOCUMENT])
