"""Chooses drafts from the most frequent tokens only: FR-Spec (arXiv 2502.14856), on MTP heads.

With drafts, the output head is read once more for each drafted token, whole: of Qwen3.5-4B 1.27 GB.
Most of what is said is a small part of the vocabulary, so the drafter gets a copy of those rows,
and takes the best of them. All tokens verify as ever: a token outside of the copy is never drafted,
and no text changes. vLLM 0.32 has the place for it: with ``use_local_argmax_reduction`` both of its
model runners ask the drafter for ``get_top_tokens`` and no logits. That is outside of the compiled
graphs, so no key of them changes; where whole steps are captured, it is captured with them.

Kept are the specials, what ends a text, what the counts name (a template's words), then tokens by
use. Bytes are kept by use like all others: nothing has to be spelled from drafts. Counts of another
model's vocabulary would cost drafts and change no text; ``serve.counts`` finds them out before.
"""

import base64
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# In the engine's environment: tokens to choose from, and the file of counts that says which.
SIZE, COUNTS = "PREHEAT_DRAFT_VOCAB_SIZE", "PREHEAT_DRAFT_COUNTS"
MARK = "preheat_wraps"
# Beside a model whose vocabulary was pruned (``bake.vocabulary``).
VOCAB_MAP = "vocab_map.json"
# A member of an object; within a text its quotes would be escaped.
ADDED = re.compile(rb'"added_tokens"\s*:\s*(?=\[)')
# Of a head that is not plain, one-hot inputs tell so many columns at once.
COLUMNS = 256

logger = logging.getLogger("vllm.preheat")


class NoDraftVocabulary(RuntimeError):
    """Drafts cannot be chosen from a part here. Ends the engine: it was asked for one that does."""


def needed() -> bool:
    """Whether it is asked for and drafters still load as vLLM's. Imports nothing if not."""
    if not os.environ.get(SIZE):
        return False
    return not all(hasattr(one.load_model, MARK) for one in _drafters())


def apply() -> None:
    """Give each drafter that is loaded from now on its part of the head."""
    size, counts = int(os.environ[SIZE]), Path(os.environ[COUNTS])
    for one in _drafters():
        one.load_model = narrowing(one.load_model, size, counts)


def _drafters() -> tuple[Any, ...]:
    """What both model runners load a drafter by; the second is of GPUs alone."""
    import torch
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    if torch.version.cuda is None:
        return (SpecDecodeBaseProposer,)
    from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

    return SpecDecodeBaseProposer, DraftModelSpeculator


def narrowing(load: Callable[..., None], size: int, counts: Path) -> Callable[..., None]:
    """``load_model`` of a drafter, after which it chooses from ``size`` tokens."""

    def load_model(self: Any, target_model: Any) -> None:
        load(self, target_model)
        _check(self)
        config = self.vllm_config.model_config
        rows = config.get_vocab_size()
        ids = draft_ids(Path(config.model), counts, size, rows)
        self.model.get_top_tokens = chooser(self.model.lm_head, ids, config.dtype, self.device)
        self.use_local_argmax_reduction = True
        logger.info("preheat: drafts are chosen from %d of %d tokens", len(ids), rows)

    setattr(load_model, MARK, load)
    return load_model


def _check(drafter: Any) -> None:
    """Whether this drafter's choice is an argmax of one head that lies here whole.

    :raises NoDraftVocabulary: it is not.
    """
    ranks = drafter.vllm_config.parallel_config.tensor_parallel_size
    if ranks != 1:
        raise NoDraftVocabulary(f"{SIZE}: the head is sliced over {ranks} ranks")
    method = drafter.vllm_config.speculative_config.draft_sample_method
    if method != "greedy":
        # Its probabilities go into the verification, over all tokens.
        raise NoDraftVocabulary(f"{SIZE}: drafts are sampled ({method}), expected greedy ones")
    if not hasattr(drafter.model, "get_top_tokens"):
        name = type(drafter.model).__name__
        raise NoDraftVocabulary(f"{SIZE}: {name} is not asked for its best tokens by vLLM")


def draft_ids(model: Path, counts: Path, size: int, rows: int) -> list[int]:
    """The ids that drafts of the checkpoint in ``model`` are chosen from, ascending.

    ``rows`` is the model's vocabulary in tokens. A pruned one is counted by its original ids.

    :raises NoDraftVocabulary: the counts are of more tokens than that, or too many must stay.
    """
    levels, required = counted(model, counts, rows)
    if len(levels) > rows:
        raise NoDraftVocabulary(f"{counts}: counts of {len(levels)} tokens, the model has {rows}")
    if len(required) > size or size > rows:
        raise NoDraftVocabulary(
            f"{SIZE}={size}: expected from {len(required)} (specials, what the counts name) "
            f"to {rows} (all tokens)"
        )
    return select(levels.ljust(rows, b"\0"), required, size)


def counted(model: Path, counts: Path, rows: int) -> tuple[bytes, set[int]]:
    """The level of each id of the checkpoint in ``model``, and the ids below ``rows`` that stay."""
    levels, always = read_counts(counts)
    if (names := model / VOCAB_MAP).is_file():
        kept = json.loads(names.read_bytes())["kept"]
        new = {old: number for number, old in enumerate(kept)}
        levels = bytes(levels[old] if old < len(levels) else 0 for old in kept)
        always = tuple(new[old] for old in always if old in new)
    return levels, {one for one in (*always, *named(model)) if one < rows}


def read_counts(path: Path) -> tuple[bytes, tuple[int, ...]]:
    """How often each id is used, as a level (``bake.vocabulary.counts`` says of what), and ids that
    stay whatever their count.
    """
    told = json.loads(path.read_bytes())
    return zlib.decompress(base64.b64decode(told["levels"])), tuple(told["always"])


def named(model: Path) -> set[int]:
    """Ids that a checkpoint's files name: added tokens, and what ends or begins a text."""
    found: set[Any] = set()
    for name in ("config.json", "generation_config.json"):
        told = _object(model / name)
        for one in (told, told.get("text_config") or {}):
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                value = one.get(key)
                found.update(value if isinstance(value, list) else [value])
    decoder = _object(model / "tokenizer_config.json").get("added_tokens_decoder") or {}
    found.update(int(one) for one in decoder)
    # Of 13 MB, of which the vocabulary need not be parsed.
    if (tokenizer := model / "tokenizer.json").is_file():
        raw = tokenizer.read_bytes()
        if at := ADDED.search(raw):
            text = raw[at.end() :].decode(errors="replace")
            found.update(one["id"] for one in json.JSONDecoder().raw_decode(text)[0])
    # Many say -1 where there is none; and to Python, true is an int.
    return {one for one in found if type(one) is int and one >= 0}


def _object(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}


def select(levels: bytes, required: Iterable[int], size: int) -> list[int]:
    """``size`` ids, ascending: ``required``, then by falling level, then by id.

    Ascending, so that of equals the choice is the one that a whole vocabulary would give.
    """
    import numpy as np

    chosen = set(required)
    by_use = np.argsort(-np.frombuffer(levels, np.uint8).astype(np.int16), kind="stable")
    for one in by_use.tolist():
        if len(chosen) >= size:
            break
        chosen.add(one)
    return sorted(chosen)


def chooser(head: Any, ids: list[int], dtype: Any, device: Any) -> Callable[..., Any]:
    """``get_top_tokens`` of a drafter: of hidden states (rows, width) each row's best of ``ids``,
    int64 of shape (rows,).
    """
    import torch

    kept = torch.tensor(ids, dtype=torch.int64, device=device)
    score, best = _product(rows_of(head, kept, dtype))

    # Drafters of several layers are told which of them drafts; they share one head.
    def get_top_tokens(hidden_states: Any, spec_step_idx: int = 0) -> Any:
        return kept[best(score(hidden_states))]

    return get_top_tokens


def rows_of(head: Any, kept: Any, dtype: Any) -> Any:
    """The rows ``kept`` of an output head, (tokens, width), dense.

    A head that is quantized, or packed for its kernel and nothing else, is asked what it makes of
    one-hot inputs: that is what its columns are, to the rounding of ``dtype``.
    """
    import torch
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    plain = isinstance(head.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod)
    if plain and head.weight.numel():
        return head.weight.detach().index_select(0, kept)
    ones = torch.eye(head.embedding_dim, dtype=dtype, device=kept.device)
    parts = [head.quant_method.apply(head, some)[:, kept].T for some in ones.split(COLUMNS)]
    return torch.cat(parts, 1).contiguous()


def _product(rows: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Scores of hidden states against ``rows``, and the place of the best of each."""
    import torch

    if rows.device.type != "cpu":
        return (
            lambda hidden: torch.nn.functional.linear(hidden, rows),
            lambda scores: scores.argmax(dim=-1),
        )
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    from serve.plugin.draft_argmax import argmax

    # As vLLM does with its own: packed for the kernel that suits the shape.
    part = torch.nn.Module()
    part.weight = torch.nn.Parameter(rows, requires_grad=False)
    dispatch_cpu_unquantized_gemm(part, remove_weight=True)
    return (lambda hidden: part.cpu_linear(hidden, part.weight, None)), argmax
