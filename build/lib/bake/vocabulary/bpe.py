"""Byte-pair merging by ids, and what a token is made of.

A token is *reachable* when its own bytes, merged by rank, end as that token. Within any text the
merges inside a token's span happen as they do on the span alone: no merge crosses its borders, and
the lowest rank of all is the lowest of the span. So the tokens that stand between its bytes and it
(its *ancestors*) are the same in every text, and are all that must be kept for it to be made.
Merges that never happen on the way, as other derivations of the same token, cannot matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# A pair of ids → its rank, and the id that it becomes.
Ranks = Mapping[tuple[int, int], tuple[int, int]]
NEVER = (2**62, -1)


@dataclass(frozen=True)
class Bpe:
    """``pieces`` are the ids of a token's bytes, by its id; none where a byte has no token.
    ``whole``: a word that is a token becomes it without merging (``ignore_merges``).
    """

    ranks: Ranks
    pieces: Sequence[tuple[int, ...] | None]
    whole: bool = False

    def ancestors(self, token: int) -> frozenset[int] | None:
        """Every id between the bytes of ``token`` and it, itself included.

        None where its bytes do not end as it: no text is ever encoded to it.
        """
        begun = self.pieces[token]
        if begun is None:
            return None
        ids, made = list(begun), {*begun}
        while len(ids) > 1 and (at := self._lowest(ids)) >= 0:
            ids[at : at + 2] = [self.ranks[ids[at], ids[at + 1]][1]]
            made.add(ids[at])
        if ids == [token]:
            return frozenset(made)
        return frozenset({token}) if self.whole else None

    def _lowest(self, ids: Sequence[int]) -> int:
        """Where the pair of lowest rank begins, the leftmost of several; -1 if none merges."""
        find = self.ranks.get
        ranks = [find(pair, NEVER)[0] for pair in pairwise(ids)]
        lowest = min(ranks)
        return ranks.index(lowest) if lowest < NEVER[0] else -1
