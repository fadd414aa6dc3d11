"""Whether two engines say the same, and where they do not, how near the two tokens were.

Drafts that are verified greedily cannot change text but where the model's own choice is a tie
within rounding: BF16 sums of another batch size are added in another order. So each difference is
told with the log-probabilities of both tokens, and the engine's difference from itself (alone, and
eight at a time) is told beside it, and drafts may not part more prompts than that explains.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.mtp.asking import Ask, Said

# Units in the last place of a BF16 logit that rounding can turn two candidates around by.
UNITS = 2
# The coarsest unit that is believed, that of logits of 16 to 32 (8 bits of mantissa), and the
# finest, of 0.5 to 1.
COARSEST, FINEST = 2**-3, 2**-8
# Odds at which more differences than the floor's are no chance.
CHANCE = 0.01
FLOOR = "floor"
IDENTICAL, NEAR, DIFFERENT = "identical", "near ties", "different"


@dataclass(frozen=True)
class Difference:
    """Prompt `number` goes on otherwise from token `place` of the answer on; `given` are the ids
    up to there, `mine` and `other` what each engine said next (None: its answer had ended).
    """

    number: int
    place: int
    given: tuple[int, ...]
    mine: int | None
    other: int | None


def first_difference(number: int, mine: Said, other: Said) -> Difference | None:
    """Where `other` leaves `mine`, if it does."""
    shared = 0
    for a, b in zip(mine.tokens, other.tokens, strict=False):
        if a != b:
            break
        shared += 1
    if mine.tokens == other.tokens:
        return None
    tails = [said.tokens[shared] if shared < len(said.tokens) else None for said in (mine, other)]
    return Difference(number, shared, mine.prompt + mine.tokens[:shared], *tails)


def differences(mine: Sequence[Said], other: Sequence[Said]) -> list[Difference]:
    """Every prompt's first difference, of two passes over the same prompts."""
    pairs = enumerate(zip(mine, other, strict=True))
    return [found for n, (a, b) in pairs if (found := first_difference(n, a, b))]


def unit(logprobs: Iterable[float]) -> float:
    """The last place of the logits behind some candidates' log-probabilities.

    Log-probabilities differ as logits do, so all differences are multiples of the unit: it is the
    largest power of two of which they are. Candidates with smaller logits can make it too small,
    never too large beyond ``COARSEST``: then a tie is called a difference, not the reverse.
    """
    values = sorted(logprobs, reverse=True)
    step = COARSEST
    while step > FINEST and any(
        abs(gap - round(gap)) > 0.01 for gap in ((values[0] - v) / step for v in values)
    ):
        step /= 2
    return step


def weighed(
    found: Difference, ask: Ask, logprobs: Mapping[int, float] | None, top: Iterable[float] = ()
) -> dict[str, Any]:
    """A difference as it is kept: both candidates with their log-probabilities, the gap, and the
    unit of the logits, as ``top``, the likeliest candidates' log-probabilities, show it.

    Without log-probabilities, where one answer ended and the other did not, it is never a tie.
    """
    told: dict[str, Any] = {
        "prompt": found.number,
        "source": ask.source,
        "place": found.place,
        "mine": found.mine,
        "other": found.other,
    }
    if logprobs is None or found.mine is None or found.other is None:
        return told | {"gap": None, "near_tie": False}
    last = unit([*logprobs.values(), *top])
    one, two = logprobs[found.mine], logprobs[found.other]
    gap = round(abs(one - two), 4)
    told |= {"mine_logprob": round(one, 4), "other_logprob": round(two, 4), "gap": gap}
    return told | {"unit": last, "near_tie": gap <= UNITS * last + 1e-3}


def verdict(found: Sequence[Mapping[str, Any]]) -> str:
    """Of one comparison."""
    if not found:
        return IDENTICAL
    return NEAR if all(one["near_tie"] for one in found) else DIFFERENT


def parted(found: Sequence[Mapping[str, Any]]) -> int:
    """Prompts whose texts part; one may do so more than once."""
    return len({one["prompt"] for one in found})


def digests(answers: Iterable[Said]) -> str:
    """Of each answer 64 bits of the SHA-256 of its token ids as JSON, in hexadecimal."""
    ids = (json.dumps(list(one.tokens)) for one in answers)
    return " ".join(hashlib.sha256(one.encode()).hexdigest()[:16] for one in ids)


def samples(comparisons: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a record keeps: of every comparison the digests of both engines' answers, in the order
    of the prompts, then a row for each place where they part.
    """
    kept = ("mine_sha256", "other_sha256")
    made = [{"answers_of": n, **{k: told[k] for k in kept}} for n, told in comparisons.items()]
    return made + [
        {"comparison": n, **one} for n, told in comparisons.items() for one in told["found"]
    ]


def summed(names: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures of each comparison out of what a record keeps; records from before digests were kept
    tell by the places alone.
    """
    answers = {one["answers_of"]: one for one in rows if "answers_of" in one}
    told = {}
    for name in names:
        found = [one for one in rows if one.get("comparison") == name]
        told[name] = figures(found)
        if name in answers:
            mine, other = (answers[name][f"{side}_sha256"].split() for side in ("mine", "other"))
            different = sum(a != b for a, b in zip(mine, other, strict=True))
            told[name] |= {"prompts": len(mine), "different": different}
    return told


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the places of one comparison."""
    return {
        "different": parted(found),
        "near_ties": sum(one["near_tie"] for one in found),
        "largest_gap": max((one["gap"] for one in found if one["gap"] is not None), default=None),
    }


def chance(drafts: int, floor: int, prompts: int) -> float:
    """Odds of so many parted prompts with drafts, or more, where the floor has as many as it has of
    the same number: Fisher's exact test, one-sided.
    """
    both = drafts + floor
    ways = math.comb(2 * prompts, both)
    least = range(drafts, min(both, prompts) + 1)
    return sum(math.comb(prompts, n) * math.comb(prompts, both - n) for n in least) / ways


def agreed(comparisons: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether drafts change nothing but ties: in float32 nothing at all; in BF16 nothing but near
    ties, and of no more prompts than an engine without drafts parts from itself.
    """
    return all(_agreed(told, comparisons) for told in comparisons.values())


def _agreed(told: Mapping[str, Any], comparisons: Mapping[str, Mapping[str, Any]]) -> bool:
    if told["dtype"] == "float32":
        return bool(told["verdict"] == IDENTICAL)
    floor = comparisons.get(f"{told['dtype']} {FLOOR}")
    if told["verdict"] == DIFFERENT:
        # What drafts have no part in is no fault of theirs.
        return told is floor
    if floor is None:
        return True
    return chance(parted(told["found"]), parted(floor["found"]), told["prompts"]) >= CHANCE


def words(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """What may be said of all of them."""
    drafts = [told for name, told in comparisons.items() if not name.endswith(FLOOR)]
    if not agreed(comparisons):
        return "drafts CHANGE what is said"
    if all(told["verdict"] == IDENTICAL for told in drafts):
        return "drafts change nothing"
    said = ", ".join(
        f"{name} {parted(told['found'])} of {told['prompts']}"
        for name, told in comparisons.items()
        if told["found"]
    )
    return f"drafts change nothing but ties within rounding; prompts that part: {said}"


def mixed(asks: Sequence[Ask]) -> list[Ask]:
    """The same prompts with answers of four lengths, and every other one ended by a text."""
    lengths = (1, 16, 48, 96)
    stops: tuple[tuple[str, ...], ...] = ((), (".", "\n"), (), (" the",))
    return [Ask(a.source, a.prompt, lengths[n % 4], stops[n % 4]) for n, a in enumerate(asks)]
