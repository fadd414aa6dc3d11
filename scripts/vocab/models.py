"""Which vocabulary is counted on which corpus, in which shares, down to which size."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bake.errors import BakeError
from bake.progress import Shown
from scripts.tiny.corpus import MIXTURES, Item, read_corpus
from scripts.tiny.packages import FetchError
from scripts.tiny.packages import fetch_all as fetch_tiny
from scripts.vocab import qwen
from scripts.vocab.counting import CODES, ENGLISH, OTHERS
from scripts.vocab.packages import fetch_all
from scripts.vocab.texts import Text, texts
from serve.settings import REPOSITORY

WORK = REPOSITORY / ".cache" / "vocabulary"
TINY = REPOSITORY / ".cache" / "train-tiny" / "sources"
FOLDER = REPOSITORY / "experiments" / "vocabularies"
# Between braces a template is program; between quotes in it, and outside of it, text.
QUOTED = re.compile(r"'((?:[^'\\\n]|\\.)*)'|\"((?:[^\"\\\n]|\\.)*)\"")
PROGRAM = re.compile(r"\{[%{#].*?[%}#]\}", re.DOTALL)
ROLES = "system\nuser\nassistant\ntool\n"


@dataclass(frozen=True)
class Model:
    """``folder`` is the checkpoint; none where only the vocabulary is here."""

    name: str
    size: int
    shares: Mapping[str, float]
    folder: Path | None = None
    curve: Sequence[int] = ()


@dataclass(frozen=True)
class Corpus:
    """Texts, and what they were made of."""

    name: str
    texts: list[Text]
    told: Mapping[str, object] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over source, name and text of each, in order."""
        total = hashlib.sha256()
        for one in self.texts:
            for part in (one.group, one.source, one.name, one.text):
                total.update(part.encode(errors="surrogatepass") + b"\0")
        return total.hexdigest()


K = 1024
MODELS = {
    "tiny": Model(
        "tiny",
        8 * K,
        {name: share / 1000 for name, share in MIXTURES[-1][1].items()},
        REPOSITORY / "weights" / "tiny",
        (1 * K, 2 * K, 3 * K, 4 * K, 6 * K, 8 * K, 10 * K, 12 * K, 14 * K),
    ),
    "smollm2-135m": Model(
        "smollm2-135m",
        24 * K,
        {ENGLISH: 0.6, CODES: 0.3, OTHERS: 0.1},
        REPOSITORY / "weights" / "smollm2-135m",
        (2 * K, 4 * K, 8 * K, 12 * K, 16 * K, 20 * K, 24 * K, 32 * K, 40 * K),
    ),
    "qwen3.5-4b": Model(
        "qwen3.5-4b",
        64 * K,
        {ENGLISH: 0.3, CODES: 0.3, OTHERS: 0.4},
        None,
        (8 * K, 16 * K, 32 * K, 48 * K, 64 * K, 96 * K, 128 * K, 192 * K),
    ),
}


def tokenizer_of(model: Model, work: Path = WORK) -> Path:
    """Its ``tokenizer.json``.

    :raises BakeError: the checkpoint is not here.
    """
    if model.folder is None:
        return qwen.tokenizer_file(work)
    path = model.folder / "tokenizer.json"
    if not path.is_file():
        raise BakeError(f"{path}: no such file", f"make fetch MODEL={model.name}")
    return path


def corpus_of(model: Model, work: Path, shown: Shown) -> Corpus:
    """The texts that ``model`` is counted on, and those that are held out."""
    try:
        versions = fetch_tiny(TINY)
    except FetchError as error:
        raise BakeError(str(error).partition("\nhint: ")[0], "apt-get update, again") from error
    if model.name == "tiny":
        split = read_corpus(TINY / "tree", talks=70_000, seed=0)
        both = [_text(one, held=False) for one in split.train]
        both += [_text(one, held=True) for one in split.held_out]
        return Corpus("what the tiny model was trained on", both, {"packages": versions})
    packages = fetch_all(work, shown)
    told = {"packages": {**versions, **packages}}
    return Corpus(
        "documentation, messages and source code", texts(work / "tree", TINY / "tree"), told
    )


@dataclass(frozen=True)
class Split(Text):
    """A text that another rule holds out."""

    held: bool = False

    @property
    def held_out(self) -> bool:
        """As the training held it out."""
        return self.held


def _text(item: Item, *, held: bool) -> Text:
    return Split(item.group, item.source, item.name, item.text, held)


def template_words(folder: Path | None) -> str:
    """What a chat template writes beside the messages: what is quoted in it, and what stands
    outside of its program; roles, too.
    """
    path = folder / "chat_template.jinja" if folder else None
    template = path.read_text(encoding="utf-8") if path and path.is_file() else ""
    quoted = [a or b for a, b in QUOTED.findall(template)]
    plain = [one.replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'") for one in quoted]
    return ROLES + "\n".join([*plain, *PROGRAM.split(template)])
