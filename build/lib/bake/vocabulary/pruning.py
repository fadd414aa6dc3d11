"""One folder that vLLM serves, made of another: fewer tokens, everything else as it was.

open, check ─► ids that stay ─► tables │ tokenizer │ configs │ vocab_map.json ─► whole ─► DST
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bake import tree
from bake.checkpoint import standing, whole
from bake.checkpoint.along import along
from bake.checkpoint.folder import (
    CONFIG,
    MAX_CONFIG_BYTES,
    MAX_FILE_BYTES,
    Located,
    check_index,
    check_numbers,
    check_safetensors,
    find,
    located,
    open_shards,
    read_object,
    read_whole,
)
from bake.checkpoint.settings import settings_of
from bake.errors import BakeError, Malformed, Unsupported
from bake.progress import Shown, silent
from bake.vocabulary import counts as counting
from bake.vocabulary import tokenizer as tokenizers
from bake.vocabulary.ids import DECODER, Numbering, ids_in, over_tree
from bake.vocabulary.keep import Kept, check_size, keep, unreachable
from bake.vocabulary.tables import rows_of, write_all
from bake.vocabulary.tokenizer import Tokenizer
from blob.files import replace
from serve.model import VOCAB_MAP as MAP
from serve.translate import SCHEMA

TOKENIZER_CONFIG, ADDED = "tokenizer_config.json", "added_tokens.json"
CONFIGS = (
    CONFIG,
    "generation_config.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
# The same vocabulary once more, as older readers take it.
VOCAB, MERGES = "vocab.json", "merges.txt"
# Vocabularies in forms that are not pruned; left beside a new one they would contradict it.
FOREIGN = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")


@dataclass(frozen=True)
class Report:
    """What was made. Sizes in tokens; ``least`` had to stay, ``ancestors_only`` stay for what is
    made of them. ``lacking`` are bytes that the vocabulary had no token for, before as after.
    ``covered`` is the share of the counts that is of kept tokens.
    """

    folder: Path
    original_size: int
    size: int
    least: int
    ancestors_only: int
    unreachable: int
    lacking: int
    merges: int
    covered: float
    bytes_before: int
    bytes_after: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """All that is known before anything is written."""

    there: Located
    rows: int
    tokenizer: Tokenizer
    configs: Mapping[str, dict[str, Any]]
    files: Mapping[str, Path]
    required: frozenset[int]


def prune(source: Path, folder: Path, counts: Path, size: int, shown: Shown = silent) -> Report:
    """Make ``folder``, of ``source`` with exactly ``size`` tokens, whole or not at all.

    ``counts`` says which: see ``bake.vocabulary.counts``.

    :raises BakeError: a size that cannot be, counts of another vocabulary, files that contradict
        each other, or something stands at ``folder``.
    :raises Unsupported: quantized weights, a vocabulary that was pruned, no byte-level BPE.
    :raises Malformed: a file is not what its format says, or tensors are not what the config says.
    """
    began = time.monotonic()
    folder = folder.absolute()
    standing.check_free(folder, source)
    job, counted = plan(source), counting.read(counts)
    digest, tokens = job.tokenizer.digest, len(job.tokenizer.texts)
    counting.check_same(counted, digest, tokens, counts)
    check_size(size, tokens)
    bpe, numbers = job.tokenizer.bpe(), counted.numbers(tokens)
    always = {one for one in counted.always if one < job.tokenizer.vocabulary}
    kept = keep(bpe, numbers, job.required | always, size)
    files = _files(job, Numbering(kept.ids), size)
    sizes = _make(folder, source, job, kept, files, shown)
    small = tokenizers.parsed(files[tokenizers.NAME], tokenizers.NAME)
    covered = sum(numbers[one] for one in kept.ids) / (sum(numbers) or 1)
    return Report(
        folder=folder,
        original_size=job.rows,
        size=size,
        least=kept.least,
        ancestors_only=kept.ancestors_only,
        unreachable=len(unreachable(small.bpe(), small.by_merging())),
        lacking=256 - len(small.bytes_there()),
        merges=len(small.merges),
        covered=round(covered, 6),
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        seconds=round(time.monotonic() - began, 3),
    )


def _make(  # noqa: PLR0913 - where, and what of what
    folder: Path,
    source: Path,
    job: Job,
    kept: Kept,
    files: Mapping[str, bytes],
    shown: Shown,
) -> tuple[int, int]:
    """The folder, beside and then in its place. Bytes of weights before, and after."""
    try:
        with tree.locked(folder):
            standing.free(folder, source)
            part = tree.beside(folder, ".part")
            part.mkdir()
            sizes = write_all(part, job.there, kept.ids, shown)
            for name, raw in files.items():
                replace(part / name, raw, 0o644)
            tree.put_in_place(folder)
    except OSError as error:
        raise standing.unwritten(error, folder) from error
    return sizes


def plan(source: Path) -> Job:
    """What is in ``source``, checked; no table is read yet. Errors as ``prune``."""
    if not source.is_dir():
        raise BakeError(f"{source}: no such folder", "give the folder of a checkpoint")
    if (source / MAP).exists():
        raise Unsupported(
            f"{source}: is pruned already ({MAP})", "prune the model that it was made of"
        )
    config = read_object(source / CONFIG, MAX_CONFIG_BYTES)
    # As quantize asks: without, nothing could be held against the tensors, and vLLM serves it not.
    if not isinstance(config.get("architectures"), list):
        raise BakeError(
            f"{source / CONFIG}: no 'architectures': not a checkpoint",
            "fetch the model's own config.json",
        )
    if settings := settings_of(config):
        method = settings.get("quant_method") if isinstance(settings, dict) else ""
        raise Unsupported(
            f"{source}: is quantized ({str(method or 'unknown')[:40]}), and its tables with it",
            "prune the plain model first, then quantize what comes out",
        )
    found = find(source)
    check_numbers(found)
    shards = open_shards(found)
    check_safetensors(shards, source)
    there = located(shards)
    check_index(found, there)
    whole.check_stored(source, config, there)
    tensors = {name: tensor for name, (_, tensor) in there.items()}
    rows = rows_of(tensors, config, str(source))
    tokenizer = _tokenizer(source, rows)
    configs = {
        name: read_object(path) for name, path in found.files.items() if name in (*CONFIGS, ADDED)
    }
    try:
        required = _required(source, tokenizer, configs, rows)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # The walk takes shapes as transformers writes them; any other stops it here, unwritten.
        detail = f"ids stand in a config in a form that is not known ({error!r:.80})"
        raise Malformed(
            str(source), detail, hint="take configs and tokenizer of one model"
        ) from error
    return Job(there, rows, tokenizer, configs, found.files, required)


def _tokenizer(source: Path, rows: int) -> Tokenizer:
    foreign = [one.name for one in source.iterdir() if _is_foreign(one.name)]
    if foreign:
        raise Unsupported(
            f"{source / foreign[0]}: a vocabulary of this form is not pruned", tokenizers.ONLY
        )
    if not (source / tokenizers.NAME).is_file():
        raise Unsupported(f"{source}: no {tokenizers.NAME}", tokenizers.ONLY)
    tokenizer = tokenizers.read(source / tokenizers.NAME)
    if len(tokenizer.texts) > rows:
        raise BakeError(
            f"{source}: {len(tokenizer.texts)} tokens, and an embedding of {rows} rows",
            "take weights and tokenizer of one model",
        )
    return tokenizer


def _is_foreign(name: str) -> bool:
    return name in FOREIGN or name.endswith(".tiktoken")


def _required(
    source: Path, tokenizer: Tokenizer, configs: Mapping[str, dict[str, Any]], rows: int
) -> frozenset[int]:
    """Bytes, added tokens, and every id that any file names."""
    required = {*tokenizer.bytes_there(), *tokenizers.named(tokenizer)}
    tokens = len(tokenizer.texts)
    for name, config in configs.items():
        if name == ADDED:
            _check_contents(source / name, tokenizer, {str(i): text for text, i in config.items()})
            required.update(config.values())
            continue
        decoder = config.get(DECODER)
        told = decoder if isinstance(decoder, dict) else {}
        contents = {one: said.get("content") for one, said in told.items()}
        _check_contents(source / name, tokenizer, contents)
        required |= ids_in(config, rows, tokens, str(source / name))
    return frozenset(required)


def _check_contents(path: Path, tokenizer: Tokenizer, told: Mapping[str, Any]) -> None:
    """Whether another file calls tokens by the ids that the tokenizer gives them.

    :raises Malformed: it does not.
    """
    for token, text in told.items():
        at = int(token) if token.isdecimal() else -1
        there = tokenizer.texts[at] if 0 <= at < len(tokenizer.texts) else None
        if there != text:
            detail = (
                f"says {text!r:.40} of the id {token[:12]}, and {tokenizers.NAME} {there!r:.40}"
            )
            raise Malformed(str(path), detail, hint="take both files of one model")


def _files(job: Job, number: Numbering, size: int) -> dict[str, bytes]:
    """Every file but the weights, as the new folder has it."""
    made = tokenizers.pruned(job.tokenizer, number, number.kept)
    files = {name: read_whole(path, MAX_FILE_BYTES) for name, path in along(job.files).items()}
    for name, config in job.configs.items():
        if name == ADDED:
            files[name] = _dump({text: number(token) for text, token in config.items()})
        else:
            files[name] = _dump(over_tree(config, number, lambda _: size))
    files[tokenizers.NAME] = _compact(made)
    if VOCAB in files:
        files[VOCAB] = _compact(made["model"]["vocab"])
    if MERGES in files:
        files[MERGES] = _lines(made["model"]["merges"])
    told = {"schema": SCHEMA, "original_size": job.rows, "kept": list(number.kept)}
    files[MAP] = _compact(told)
    return files


def _lines(merges: list[Any]) -> bytes:
    pairs = [one if isinstance(one, str) else " ".join(one) for one in merges]
    return "\n".join(["#version: 0.2", *pairs, ""]).encode()


def _dump(told: Any) -> bytes:
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def _compact(told: Any) -> bytes:
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return (text + "\n").encode(errors="surrogatepass")
