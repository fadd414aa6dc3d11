"""What the packages hold, as texts of a group: a language (``de``), or code (``code:go``).

A text is counted or held out by the SHA-256 of its source and name. Two sources are never counted:
the Declaration of Human Rights and the Debian Reference, prose of another kind than what is.
"""

import gzip
import hashlib
import json
import re
import struct
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.tiny.sources import Document, html_text, plain_documents, stdlib_documents

HELD_OUT_IN = 20
NEVER_COUNTED = ("udhr", "debian-reference")
MOST_TEXT = 60_000
# Of one group, so that a large source does not take an hour to say what a part of it says.
MOST_GROUP = 8_000_000
# Messages of a catalogue that make one text.
TOGETHER = 40
CODE = "code:"
SOURCES = {"py": "python", "ts": "typescript", "js": "javascript", "go": "go", "rs": "rust"} | {
    "c": "c",
    "h": "c++",
}
UDHR = {
    **{"arb": "ar", "ben": "bn", "bul": "bg", "ces": "cs", "cmn_hans": "zh", "cmn_hant": "zh-tw"},
    **{"dan": "da", "deu_1996": "de", "ell_monotonic": "el", "eng": "en", "est": "et"},
    **{"fin": "fi", "fra": "fr", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "ind": "id"},
    **{"ita": "it", "jpn": "ja", "kat": "ka", "kaz": "kk", "khm": "km", "kor": "ko", "lit": "lt"},
    **{"mar": "mr", "mya": "my", "nld": "nl", "nob": "nb", "pes_1": "fa", "pol": "pl"},
    **{"por_BR": "pt", "ron_2006": "ro", "rus": "ru", "slk": "sk", "slv": "sl", "spa": "es"},
    **{"srp_cyrl": "sr", "swe": "sv", "swh": "sw", "tam": "ta", "tel": "te", "tha": "th"},
    **{"tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi"},
}
# As others call what we call otherwise.
ALIASES = {"zh-cn": "zh", "zh-hans": "zh", "zh-hant": "zh-tw", "pt-br": "pt", "es-es": "es"} | {
    "no": "nb",
    "sr-latn": "sr-latn",
}
LOCALE = re.compile(r"/locale/([A-Za-z_@]+)/LC_MESSAGES/")
ROFF = re.compile(r"\\f[A-Z0-9]|\\f\([A-Z]{2}|\\[&/,|^]|\\s[-+]?\d")


@dataclass(frozen=True)
class Text:
    """One text; ``group`` is its language, or the language of its code."""

    group: str
    source: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept from counting."""
        if self.source in NEVER_COUNTED:
            return True
        named = hashlib.sha256(f"{self.source}/{self.name}".encode()).digest()
        return int.from_bytes(named[:8], "big") % HELD_OUT_IN == 0


def texts(tree: Path, tiny: Path) -> list[Text]:
    """Every text of the packages in ``tree``, and the English ones of the tiny model's corpus; of
    each group and source at most 8 million characters, in a fixed order.
    """
    found: list[Text] = []
    room: dict[tuple[str, bool], int] = {}
    for text in (*_english(tiny), *_translated(tree), *_code(tree)):
        key = (text.group, text.source in NEVER_COUNTED)
        left = room.setdefault(key, MOST_GROUP)
        if len(text.text) >= 20 and left > 0:
            found.append(text)
            room[key] = left - len(text.text)
    return found


def _english(tiny: Path) -> Iterator[Text]:
    every = [one for one in plain_documents(tiny) if one.source != "python-stdlib"]
    # Mixed: the first source alone would fill the group.
    for one in sorted(every, key=lambda one: _mixed(f"{one.source}/{one.name}")):
        yield Text("en", one.source, one.name, one.text[:MOST_TEXT])


def _mixed(name: str) -> bytes:
    """An order without order, the same on every machine."""
    return hashlib.sha256(name.encode()).digest()


def _translated(tree: Path) -> Iterator[Text]:
    yield from _catalogues(tree)
    yield from _typescript(tree / "typescript/package/lib")
    yield from _monaco(tree / "monaco-editor/package/esm")
    yield from _pages(tree)
    yield from _declarations(tree / "udhr/package/declaration")
    yield from _books(tree)


def _code(tree: Path) -> Iterator[Text]:
    library = stdlib_documents(Path(sysconfig.get_path("stdlib")))
    yield from _from_documents("code:python", library)
    headers = Path(sysconfig.get_path("purelib")) / "torch/include"
    for folder, suffix in (
        (tree / "django", "py"),
        (tree / "typescript", "ts"),
        (tree / "monaco-editor/package/esm", "js"),
        (tree / "better-sqlite3", "c"),
        (tree / "golang-1.19-src", "go"),
        (tree / "rust-src", "rs"),
        (headers, "h"),
    ):
        yield from _sources(folder, suffix)


def _from_documents(group: str, documents: Iterable[Document]) -> Iterator[Text]:
    for one in documents:
        yield Text(group, one.source, one.name, one.text[:MOST_TEXT])


def _sources(folder: Path, suffix: str) -> Iterator[Text]:
    group = CODE + SOURCES[suffix]
    # In an order that mixes folders: a cap must not leave the last of them out.
    paths = sorted(
        folder.rglob(f"*.{suffix}"), key=lambda one: _mixed(one.relative_to(folder).as_posix())
    )
    for path in paths:
        if path.is_file() and "nls.messages" not in path.name:
            yield from _cut(group, folder.name, path.relative_to(folder).as_posix(), _read(path))


def _cut(group: str, source: str, name: str, text: str) -> Iterator[Text]:
    """A long file as several texts, up to sixty."""
    for at in range(0, min(len(text), 60 * MOST_TEXT), MOST_TEXT):
        yield Text(group, source, f"{name}#{at}", text[at : at + MOST_TEXT])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def language(code: str) -> str:
    """A language by the one name used here: ``pt_BR`` and ``pt-br`` are ``pt``."""
    short = code.replace("_", "-").partition("@")[0].lower()
    if short in ALIASES:
        return ALIASES[short]
    base, _, region = short.partition("-")
    return "zh-tw" if base == "zh" and region == "tw" else short if region == "latn" else base


def _catalogues(tree: Path) -> Iterator[Text]:
    """Messages of gettext: Django, PostgreSQL, JupyterLab."""
    for path in sorted(tree.glob("[djlp]*/**/*.mo")):
        if found := LOCALE.search(path.as_posix()):
            group, name = language(found[1]), path.relative_to(tree).as_posix()
            if group != "en":
                source = name.partition("/")[0]
                yield from _together(group, source, name, messages(path.read_bytes()))


def messages(raw: bytes) -> list[str]:
    """The translations of a GNU ``.mo`` file (gettext manual, 10.3): a table of lengths and
    places after the header; the first is of the file itself.
    """
    magic = raw[:4]
    order = "<" if magic == b"\xde\x12\x04\x95" else ">"
    count, table = struct.unpack_from(f"{order}8xI4xI", raw)
    found = []
    for at in range(1, count):
        length, begin = struct.unpack_from(f"{order}2I", raw, table + 8 * at)
        found.append(raw[begin : begin + length].decode(errors="replace").replace("\0", "\n"))
    return found


def _together(group: str, source: str, name: str, lines: list[str]) -> Iterator[Text]:
    for at in range(0, len(lines), TOGETHER):
        yield Text(group, source, f"{name}#{at}", "\n".join(lines[at : at + TOGETHER]) + "\n")


def _typescript(folder: Path) -> Iterator[Text]:
    for path in sorted(folder.glob("*/diagnosticMessages.generated.json")):
        lines = list(json.loads(_read(path)).values())
        yield from _together(language(path.parent.name), "typescript", path.parent.name, lines)


def _monaco(folder: Path) -> Iterator[Text]:
    for path in sorted(folder.glob("nls.messages.*.js")):
        raw = _read(path).partition("_VSCODE_NLS_MESSAGES=")[2]
        lines, _ = json.JSONDecoder().raw_decode(raw)
        group = language(path.name.split(".")[2])
        yield from _together(group, "monaco-editor", path.name, [one for one in lines if one])


def _pages(tree: Path) -> Iterator[Text]:
    for path in sorted(tree.glob("manpages-*/usr/share/man/*/man*/*.gz")):
        if path.is_file():
            group, name = language(path.parts[-3]), path.relative_to(tree).as_posix()
            text = unroff(gzip.decompress(path.read_bytes()).decode(errors="replace"))
            yield Text(group, "manpages", name, text[:MOST_TEXT])


def unroff(page: str) -> str:
    """The words of a manual page: requests of roff go, what they are given stays."""
    lines = []
    for line in page.splitlines():
        if line.startswith(('.\\"', "'\\\"", ".if", ".de", ".ie", ".ds", "..")):
            continue
        words = line.partition(" ")[2] if line.startswith((".", "'")) else line
        lines.append(ROFF.sub("", words).replace("\\-", "-").replace("\\(bu", "•"))
    return "\n".join(line for line in lines if line.strip()) + "\n"


def _declarations(folder: Path) -> Iterator[Text]:
    for path in sorted(folder.glob("*.html")):
        if path.stem in UDHR:
            yield Text(UDHR[path.stem], "udhr", path.stem, html_text(_read(path)))


def _books(tree: Path) -> Iterator[Text]:
    for path in sorted(tree.glob("debian-reference-*/usr/share/debian-reference/*.txt.gz")):
        group = language(path.name.split(".")[1])
        text = gzip.decompress(path.read_bytes()).decode(errors="replace")
        yield from _cut(group, "debian-reference", path.name, text)
