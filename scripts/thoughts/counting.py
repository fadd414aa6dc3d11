"""Thoughts and answers by their tokens, chat by chat, and what is told of them.

Pure. A reply is one of three. **Closed**: a thought up to the token that ends one, then the answer.
**Skipped**: no such token, yet an answer, as a model gives that calls a tool at once: none of it
is a thought. **Unclosed**: neither, all of it is a thought. Any of them may be **cut**, ended by
the limit of its tokens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.intervals import bootstrap, paired_difference, wilson

OFF, UNCAPPED = "off", "uncapped"


def counted(ids: Sequence[int], close: int, *, off: bool, answered: bool) -> dict[str, Any]:
    """Tokens of thought and of answer. With thoughts ``off`` the prompt has closed it already;
    ``answered``: the server told an answer apart from a thought.
    """
    if off:
        return {"thought": 0, "answer": len(ids), "closed": 1, "skipped": 0}
    if close not in ids:
        thought, answer = (0, len(ids)) if answered else (len(ids), 0)
        return {"thought": thought, "answer": answer, "closed": 0, "skipped": int(answered)}
    at = list(ids).index(close)
    return {"thought": at, "answer": len(ids) - at - 1, "closed": 1, "skipped": 0}


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each way's figures, and what differs from no cap, chat by chat."""
    by_way: dict[str, list[Mapping[str, Any]]] = {}
    for one in samples:
        by_way.setdefault(one["way"], []).append(one)
    plain = by_way[UNCAPPED]
    return {
        way: figures(rows) | ({} if way == UNCAPPED else {"less_uncapped": less(rows, plain)})
        for way, rows in by_way.items()
    }


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one way: tokens, how replies ended, how many answers are exact."""
    thoughts = [one["thought"] for one in rows]
    return {
        "chats": len(rows),
        "thought_tokens": mean(thoughts),
        "thought_median": float(np.median(thoughts)),
        "thought_most": max(thoughts),
        "thought_nothing": sum(one["closed"] and one["thought"] <= 1 for one in rows),
        "skipped": sum(map(skipped, rows)),
        "never_closed": sum(not one["closed"] and not skipped(one) for one in rows),
        "cut": sum(one["ended"] == "length" for one in rows),
        "answer_tokens": mean([one["answer"] for one in rows]),
        "ended": dict(sorted(Counter(one["ended"] for one in rows).items())),
        "exact": wilson(sum(one["exact"] for one in rows), len(rows)).describe(),
    }


def skipped(one: Mapping[str, Any]) -> bool:
    """Whether the reply has no thought at all. Records from before it was told have none such."""
    return bool(one.get("skipped"))


def less(rows: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a way changes beside no cap, chat by chat."""
    pairs = list(zip(rows, plain, strict=True))
    exact = [np.array([one["exact"] for one in of], np.float64) for of in (plain, rows)]
    return {
        "thought_tokens": mean([one["thought"] - other["thought"] for one, other in pairs]),
        "answer_tokens": mean([one["answer"] - other["answer"] for one, other in pairs]),
        "shorter_thoughts": sum(one["thought"] < other["thought"] for one, other in pairs),
        "same_answers": sum(one["answer_sha256"] == it["answer_sha256"] for one, it in pairs),
        "exact": paired_difference(*exact).describe(),
        "of_skipped": of_skipped(pairs),
    }


def of_skipped(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, int]:
    """Of chats answered at once with no cap: into the midst of how many answers a way put the end
    of a thought that there was not, and how many were exact before and are after.

    The record of 2026-11-22 01:12 says ``broken``, which counted answers with thoughts off, too.
    """
    at_once = [(one, other) for one, other in pairs if skipped(other)]
    return {
        "chats": len(at_once),
        "broken_into": sum(bool(one["closed"] and one["thought"]) for one, _ in at_once),
        "exact_uncapped": sum(other["exact"] for _, other in at_once),
        "exact": sum(one["exact"] for one, _ in at_once),
    }


def mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean over chats, with its interval."""
    column = np.array(values, np.float64)[:, None]
    return bootstrap(column, lambda sums: sums[:, 0] / len(values)).describe()
