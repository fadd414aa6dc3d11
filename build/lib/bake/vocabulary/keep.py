"""Which tokens stay: those that must, then the most frequent, each with all that it is made of."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bake.errors import BakeError
from bake.vocabulary.bpe import Bpe

# vLLM pads tables to rows of this many, and Marlin wants no less of a quantized head.
MULTIPLE = 64


@dataclass(frozen=True)
class Kept:
    """``ids`` in order. ``least`` of them had to stay, whatever the counts; ``ancestors_only`` stay
    for what is made of them, and would have been too rare otherwise.
    """

    ids: tuple[int, ...]
    least: int
    ancestors_only: int


def check_size(size: int, tokens: int) -> None:
    """Whether ``size`` is one that a table of a smaller vocabulary may have.

    :raises BakeError: it is no multiple of 64, or not smaller.
    """
    if size % MULTIPLE or size <= 0:
        near = max(MULTIPLE, size // MULTIPLE * MULTIPLE)
        raise BakeError(
            f"size {size}: expected a multiple of {MULTIPLE}, to which engines pad tables",
            f"say --size {near} or --size {near + MULTIPLE}",
        )
    if size >= tokens:
        most = (tokens - 1) // MULTIPLE * MULTIPLE
        raise BakeError(
            f"size {size}: the vocabulary has {tokens} tokens, nothing would be dropped",
            f"say --size {most} or less",
        )


def keep(bpe: Bpe, counts: Sequence[int], required: Iterable[int], size: int) -> Kept:
    """Exactly ``size`` ids: ``required`` and their ancestors, then by falling count, then by id.

    A token that would not fit with its missing ancestors is passed over for the next.

    :raises BakeError: what is required does not fit; the message says the least that does.
    """
    kept: set[int] = set()
    asked = set(required)
    for token in sorted(asked):
        kept |= bpe.ancestors(token) or {token}
    least = len(kept)
    if least > size:
        works = -(-least // MULTIPLE) * MULTIPLE
        raise BakeError(
            f"size {size}: {least} tokens must stay (bytes, specials, ids that are named, and "
            "what these are made of)",
            f"say --size {works} or more",
        )
    for token, made in _by_use(bpe, counts):
        if len(kept) == size:
            break
        missing = made - kept
        if len(kept) + len(missing) <= size:
            kept |= missing
            asked.add(token)
    return Kept(tuple(sorted(kept)), least, len(kept - asked))


def _by_use(bpe: Bpe, counts: Sequence[int]) -> Iterator[tuple[int, frozenset[int]]]:
    """Ids by falling count, each with its ancestors. Those that no text becomes are last, whatever
    was counted: they stay for their numbers alone, where nothing else is left.
    """
    idle = []
    for token in sorted(range(len(counts)), key=lambda one: (-counts[one], one)):
        made = bpe.ancestors(token)
        if made is None:
            idle.append((token, frozenset({token})))
        else:
            yield token, made
    yield from idle


def unreachable(bpe: Bpe, ids: Iterable[int]) -> list[int]:
    """Those of ``ids`` that no text becomes."""
    return [token for token in ids if bpe.ancestors(token) is None]
