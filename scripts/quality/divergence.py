"""How far two models' predictions of one text lie apart; what is computed, docs/quality.md tells.

Pure: what each server said of a text goes in, sums go out. A text is resampled whole, so sums of
each text are all that is kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.intervals import Interval, bootstrap

# What is left of a distribution is a difference of float32 numbers near 1: below this it is noise.
LEAST_MASS = 1e-9
PREDICTED = ("nll_reference", "nll_variant", "tokens", "tokens_variant", "characters")
COMPARED = ("compared", "kl", "kl_lumped", "agreed", "unresolved_mass")


class NotAligned(ValueError):
    """Two servers' tokens of one text cannot be laid beside each other."""


@dataclass(frozen=True)
class Position:
    """One token of a text: its place in bytes, and natural log-probabilities by token id.

    ``top`` holds the most probable tokens, and this one; ``first`` is the most probable.
    ``listed``: this one is among the most probable, not only told because it stands here.
    """

    token: int
    start: int
    size: int
    first: int
    top: Mapping[int, float]
    listed: bool = True

    @property
    def nll(self) -> float:
        """Of the token that stands here, in nats."""
        return -self.top[self.token]


@dataclass(frozen=True)
class Sums:
    """Of one text. ``nll_*`` in nats over the same bytes; ``tokens`` are the reference's,
    ``compared`` those of them that the variant has, too. ``kl`` covers every token, compared or
    not; ``kl_lumped`` the places where both predict; the rest of a mass is ``unresolved_mass``.
    """

    nll_reference: float
    nll_variant: float
    tokens: int
    tokens_variant: int
    characters: int
    compared: int
    kl: float
    kl_lumped: float
    agreed: int
    unresolved_mass: float


def lumped_kl(p: Mapping[int, float], q: Mapping[int, float]) -> tuple[float, float]:
    """KL(p‖q) in nats over the tokens that both name and one lump of all else; p's lumped mass.

    A lower bound of the full divergence, by the log sum inequality (Cover and Thomas, theorem
    2.7.1). ``p`` and ``q`` are natural log-probabilities by token.
    """
    both = p.keys() & q.keys()
    named = sum(math.exp(p[token]) * (p[token] - q[token]) for token in both)
    rest = max(0.0, 1 - sum(math.exp(p[token]) for token in both))
    other = max(LEAST_MASS, 1 - sum(math.exp(q[token]) for token in both))
    return named + (rest * math.log(rest / other) if rest > LEAST_MASS else 0.0), rest


def drawn_kl(ours: Position, theirs: Position) -> float:
    """An estimate of KL(p‖q) in nats at one place, unbiased where its token was drawn from p.

    Exact over the tokens that both list; of all others the one that was drawn stands for them:
    ``E[ln p(x)/q(x); x unlisted]`` is their part of the divergence.
    """
    return ours.top[ours.token] - theirs.top[ours.token] + _settled(ours, theirs)


def _settled(ours: Position, theirs: Position) -> float:
    """``Σ p ln(p/q)`` over the tokens that both list, less ``ln(p/q)`` of the drawn one if listed.

    Its expectation over draws from p is nothing, so added to what was drawn it takes noise off and
    moves no mean; it needs q at the same place only, not that q's own token is the same. Whether
    a token is listed must not depend on what was drawn, so one that is only told because it stands
    there is not.
    """
    p, q = ours.top, theirs.top
    both = {token for token in p.keys() & q.keys() if _lists(ours, token) and _lists(theirs, token)}
    exact = sum(math.exp(p[token]) * (p[token] - q[token]) for token in both)
    return exact - (p[ours.token] - q[ours.token] if ours.token in both else 0.0)


def _lists(position: Position, token: int) -> bool:
    return position.listed or token != position.token


def compare(
    text: str, reference: Sequence[Position], variant: Sequence[Position], after: int = 0
) -> Sums:
    """Sums of one text from byte ``after``, by the chain rule over what both predict of it.

    Where the variant lacks a token, what it says of the same bytes in other tokens stands for it:
    other spellings are not asked for, so its probability comes out too low rather than too high.
    A token without a pair counts as one on which they disagree.

    :raises NotAligned: their tokens share no boundary.
    """
    begin = _begin(text, reference, variant, after)
    ours = [one for one in reference if one.start >= begin]
    theirs = [one for one in variant if one.start >= begin]
    at = {one.start: one for one in theirs}
    places = [(one, at[one.start]) for one in ours if one.start in at]
    pairs = [(one, other) for one, other in places if one.token == other.token]
    divergences = [lumped_kl(one.top, other.top) for one, other in places]
    predicted, other_predicted = (sum(one.nll for one in side) for side in (ours, theirs))
    return Sums(
        nll_reference=predicted,
        nll_variant=other_predicted,
        tokens=len(ours),
        tokens_variant=len(theirs),
        characters=len(text.encode()[begin:].decode(errors="replace")),
        compared=len(pairs),
        kl=other_predicted - predicted + sum(_settled(one, other) for one, other in places),
        kl_lumped=sum(kl for kl, _ in divergences),
        agreed=sum(one.first == other.first for one, other in pairs),
        unresolved_mass=sum(rest for _, rest in divergences) + len(ours) - len(places),
    )


def _begin(
    text: str, reference: Sequence[Position], variant: Sequence[Position], after: int
) -> int:
    """The byte from which both predict, and before which nothing from ``after`` on stands.

    A text's first token is nobody's prediction: both begin where both have one that is not. Where
    the variant's token reaches over ``after``, both begin with it: nothing drawn is left out.
    """
    starts = {one.start for one in reference} & {one.start for one in variant}
    if not starts:
        raise NotAligned(f"no common token boundary in {text[:40]!r}")
    wanted = min((one.start for one in reference if one.start >= after), default=after)
    return max((start for start in starts if start <= wanted), default=min(starts))


def intervals(texts: Sequence[Sums], drawn: Sequence[Sums]) -> dict[str, Interval]:
    """The three figures that the rule judges, by its names, each with its interval over texts.

    Perplexity and agreement over held-out ``texts``, KL over those ``drawn`` from the reference;
    each per token of the reference, whether the variant has it or not.

    :raises NotAligned: nothing could be compared.
    """
    if not (sum(one.compared for one in texts) and sum(one.compared for one in drawn)):
        raise NotAligned("no token is the same for both: do both number them alike?")
    change = np.array([[one.nll_variant - one.nll_reference, one.tokens] for one in texts])
    kl = np.array([[one.kl, one.tokens] for one in drawn])
    agreed = np.array([[one.agreed, one.tokens] for one in texts], dtype=np.float64)
    return {
        "perplexity_change": bootstrap(change, lambda sums: np.expm1(sums[:, 0] / sums[:, 1])),
        "kl": bootstrap(kl, lambda sums: sums[:, 0] / sums[:, 1]),
        "top1_agreement": bootstrap(agreed, lambda sums: sums[:, 0] / sums[:, 1]),
    }


def totals(texts: Sequence[Sums]) -> dict[str, Any]:
    """Over all texts: each side's perplexity, and how many of their tokens the variant has, too."""
    tokens = sum(one.tokens for one in texts)
    compared = sum(one.compared for one in texts)
    characters = sum(one.characters for one in texts)
    told: dict[str, Any] = {"texts": len(texts), "tokens": tokens, "characters": characters}
    for side in ("reference", "variant"):
        nll = sum(getattr(one, f"nll_{side}") for one in texts)
        told[f"perplexity_{side}"] = round(math.exp(nll / tokens), 4)
        told[f"bits_per_character_{side}"] = round(nll / math.log(2) / characters, 5)
    return told | {
        "tokens_variant": sum(one.tokens_variant for one in texts),
        "compared": round(compared / tokens, 5),
        "kl_at_least": float(f"{sum(one.kl_lumped for one in texts) / tokens:.5g}"),
        "unresolved_mass": round(sum(one.unresolved_mass for one in texts) / tokens, 5),
    }


def columns(texts: Sequence[Sums]) -> dict[str, list[float]]:
    """Every text's sums, a list for each quantity: what a record keeps."""
    return {
        name: [float(f"{getattr(one, name):.6g}") for one in texts]
        for name in (*PREDICTED, *COMPARED)
    }
