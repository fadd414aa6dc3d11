"""Does drafting change what a model says? Compares a variant with itself less its drafts, greedily.

Passes, each over the same held-out prompts, on an engine with drafts and on one without:

    alone         one request at a time
    together      eight at a time, in the same order
    mixed         eight at a time, answers of 1 to 96 tokens, some ended by stop strings
    again         together once more, where prefix caching is on: now from the cache

Drafts are compared with no drafts for each pass; no drafts, alone, with no drafts, together, tells
how much a batch's size alone changes (`floor`). In float32 everything must be identical; where an
engine has none, as vLLM 0.32 for Qwen3.5 on a CPU, that is told and left out. In BF16 a
difference may stand only where the engine without drafts holds both tokens for a tie within
rounding, two units of its logits' last place: the log-probabilities of both are kept, and the rest
of the answer is compared with what it says after the other token. Nor may drafts part more prompts
than the floor explains. Every pass has prefixes of its own, so none but `again` meets a cache, and
both engines have prefix caching on or off alike. Last, a soak: many lengths and prompts at once
with the K that are known to end engines (vllm#37035, vllm#40756); it must answer each.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bake.progress import say
from experiments.record import Record, add, check_writable, folder_of, now, this_machine, typed
from scripts.metrics import read, summed
from scripts.mtp.asking import (
    Ask,
    Failed,
    Said,
    complete,
    complete_all,
    likeliest,
    logprobs_after,
    served_name,
)
from scripts.mtp.held_out import HELD_OUT, read_asks
from scripts.mtp.levers import Chosen, choose, place, with_drafts
from scripts.mtp.parity import (
    CHANCE,
    FLOOR,
    UNITS,
    agreed,
    digests,
    figures,
    first_difference,
    mixed,
    samples,
    verdict,
    weighed,
    words,
)
from scripts.mtp.prompts import PromptError
from scripts.options import add_axes, amount, numbers
from scripts.served import NotServed, Served, served
from serve.cli import positive
from serve.errors import ServeError

TOGETHER = 8
# Ties of one answer that are followed; the rest of one with more is not compared.
FOLLOWED = 8
# Where a kernel takes no float32: vLLM's words, and torch's of a kernel that has no such case.
NO_FLOAT32 = ("requires BF16", "not implemented for 'Float'")
EXAMPLES = """examples:
  python -m scripts.eval_parity seq8-best
  python -m scripts.eval_parity seq8-best --limit 16 --dtypes bfloat16 --no-record
  python -m scripts.eval_parity seq8-best --soak-k 5,6,7 --soak-seconds 60
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when drafts change nothing, 1 when they do or it failed, 2 usage."""
    parsed = parser().parse_args(arguments)
    folder = folder_of(parsed.variant)
    try:
        asks = read_asks(parsed.prompts, parsed.max_tokens, parsed.limit)
    except PromptError as error:
        return _usage(f"--prompts: {error}")
    except OSError as error:
        return _usage(f"--prompts: {parsed.prompts}: {error.strerror}")
    try:
        chosen = choose(parsed.variant, parsed.model, parsed.target)
        if not chosen.variant.num_speculative_tokens:
            return _usage(f"variant {parsed.variant} drafts nothing: there is nothing to compare")
        if parsed.record:
            check_writable(folder)
        record = measured(parsed, chosen, asks, typed("scripts.eval_parity", arguments))
        print(json.dumps(record.summary, indent=1) if parsed.json else report(record.summary))
        if parsed.record:
            say(f"wrote {add(record, folder)}")
    except (ServeError, NotServed, Failed, OSError) as error:
        say(f"eval_parity: {error}")
        return error.exit_code if isinstance(error, ServeError) else 1
    return 0 if record.summary["agreed"] else 1


def _usage(line: str) -> int:
    say(f"eval_parity: {line}")
    return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.eval_parity",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant that drafts")
    add_axes(top)
    top.add_argument("--prompts", type=Path, default=HELD_OUT, help="JSON lines (held-out set)")
    top.add_argument("--limit", type=positive, default=0, help="prompts taken, evenly spread (all)")
    top.add_argument("--max-tokens", type=positive, default=64, help="tokens a prompt (64)")
    top.add_argument(
        "--dtypes", type=_words, default=["bfloat16", "float32"], help="bfloat16,float32"
    )
    top.add_argument(
        "--soak-k", type=numbers(0, 7), default=[6], help="numbers of drafts (6); 0: none"
    )
    top.add_argument("--soak-seconds", type=amount, default=20.0, help="for each of them (20)")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def _words(text: str) -> list[str]:
    known = ("bfloat16", "float32")
    if odd := [word for word in text.split(",") if word not in known]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {odd[0]!r}")
    return text.split(",")


def measured(
    parsed: argparse.Namespace, chosen: Chosen, asks: Sequence[Ask], command: list[str]
) -> Record:
    """All engines, one after the other, and the record of them; ``command`` asked for it.

    :raises NotServed: an engine does not start.
    :raises Failed: one does not answer.
    """
    made, machine = now(), this_machine()
    comparisons: dict[str, dict[str, Any]] = {}
    variant: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    # BF16 first: an engine that serves it, and not float32, lacks the kernel and nothing else.
    for dtype in sorted(parsed.dtypes):
        try:
            drafting, told = passes_with_drafts(chosen, dtype, asks)
        except NotServed as error:
            lines = [line for line in str(error).splitlines() if any(map(line.count, NO_FLOAT32))]
            if dtype != "float32" or not lines or not comparisons:
                raise
            left_out[dtype] = lines[-1].removeprefix("engine |").strip()
            say(f"  {dtype} left out: {left_out[dtype]}")
            continue
        variant = variant or told
        comparisons |= compared(chosen, dtype, asks, drafting)
    soaks = [soak(chosen, k, parsed.soak_seconds, asks) for k in parsed.soak_k if k]
    compared_ = {name: _figures(told) for name, told in comparisons.items()}
    summary = {
        "agreed": agreed(comparisons) and all(one["sound"] for one in soaks),
        "words": words(comparisons),
        "left_out": left_out,
        "comparisons": compared_,
        "soak": soaks,
        "prefix_caching": prefix_caching(variant),
    }
    return Record(
        kind="parity",
        made=made,
        command=command,
        machine=machine,
        variant=variant,
        parameters={
            "prompts": len(asks),
            "prompts_file": parsed.prompts.name,
            "max_tokens": parsed.max_tokens,
            "repetition_penalty": 1.0,
            "answers": "64 bits of the SHA-256 of each answer's token ids, as JSON",
            "near_tie_units": UNITS,
            "more_than_the_floor_at": CHANCE,
            "dtypes": parsed.dtypes,
        },
        summary=summary,
        samples=samples(comparisons),
    )


def passes_with_drafts(
    chosen: Chosen, dtype: str, asks: Sequence[Ask]
) -> tuple[dict[str, list[Said]], dict[str, Any]]:
    """Every pass on the engine that drafts, and what its `/variant` said."""
    with engine(chosen, {"DTYPE": dtype}, f"{dtype}, drafts") as running:
        told: dict[str, Any] = json.loads(running.get("/variant"))
        return passes(running, asks, again=prefix_caching(told)["on"]), told


def compared(
    chosen: Chosen,
    dtype: str,
    asks: Sequence[Ask],
    drafting: Mapping[str, Sequence[Said]],
) -> dict[str, dict[str, Any]]:
    """The same passes without drafts, and each compared; log-probabilities from this engine."""
    # The other engine's way with prefixes: drafts are the one lever that differs.
    caching = "true" if "again" in drafting else "false"
    levers = {"DTYPE": dtype, **with_drafts(chosen, 0), "ENABLE_PREFIX_CACHING": caching}
    with engine(chosen, levers, f"{dtype}, no drafts") as running:
        plain = passes(running, asks, again="again" in drafting)
        pairs = {name: (plain[name], drafting[name]) for name in drafting}
        pairs[FLOOR] = (plain["alone"], plain["together"])
        return {
            f"{dtype} {name}": judged(
                running, dtype, mine, other, mixed(asks) if name == "mixed" else asks
            )
            for name, (mine, other) in pairs.items()
        }


def passes(running: Served, asks: Sequence[Ask], *, again: bool) -> dict[str, list[Said]]:
    """Answers of every pass; prefixes are shared within one alone, by its salt."""
    found = {
        "alone": complete_all(running, asks, 1, cache_salt="alone"),
        "together": complete_all(running, asks, TOGETHER, cache_salt="together"),
        "mixed": complete_all(running, mixed(asks), TOGETHER, cache_salt="mixed"),
    }
    if again:
        found["again"] = complete_all(running, asks, TOGETHER, cache_salt="together")
    return found


def judged(
    running: Served, dtype: str, mine: Sequence[Said], other: Sequence[Said], asks: Sequence[Ask]
) -> dict[str, Any]:
    """Every place where `other` parts from the engine without drafts, with what it thinks of both
    tokens there; ``mine`` are its own answers.
    """
    kept = [
        one
        for number, pair in enumerate(zip(mine, other, asks, strict=True))
        for one in followed(running, number, *pair)
    ]
    return {
        "dtype": dtype,
        "prompts": len(mine),
        "mine_sha256": digests(mine),
        "other_sha256": digests(other),
        "found": kept,
        "verdict": verdict(kept),
    }


def followed(
    running: Served, number: int, mine: Said, other: Said, ask: Ask
) -> Iterator[dict[str, Any]]:
    """Where one answer parts, and, after a tie, where it parts from what follows the other token.

    A text that may end it is looked for from the tie on only, so then the rest is not compared.
    """
    for _ in range(FOLLOWED):
        found = first_difference(number, mine, other)
        if not found:
            return
        if found.mine is None or found.other is None:
            yield weighed(found, ask, None)
            return
        both = logprobs_after(running, found.given, [found.mine, found.other])
        told = weighed(found, ask, both, likeliest(running, found.given))
        yield told
        rest = ask.max_tokens - found.place - 1
        if not told["near_tie"] or ask.stop or not rest:
            return
        given = (*found.given, found.other)
        ask = Ask(ask.source, ask.prompt, rest)
        mine = complete(running, served_name(running), ask, prompt=list(given))
        other = Said(given, other.tokens[found.place + 1 :], "", other.ended, 0.0)


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"verdict": told["verdict"], "prompts": told["prompts"], **figures(told["found"])}


def soak(chosen: Chosen, k: int, seconds: float, asks: Sequence[Ask]) -> dict[str, Any]:
    """Load of many lengths at once with `k` drafts a step: whether it answers all, and lives."""
    told: dict[str, Any] = {"k": k, "seconds": seconds, "requests": 0, "sound": False, "said": ""}
    rng = random.Random(k)  # noqa: S311  a seeded choice, no secret
    try:
        with engine(chosen, with_drafts(chosen, k), f"soak, K={k}") as running:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                some = [_any_length(rng.choice(asks), rng) for _ in range(4 * TOGETHER)]
                told["requests"] += len(complete_all(running, some, 2 * TOGETHER))
            told["restarts"] = restarts(running)
            told["sound"] = told["restarts"] == 0
    except (Failed, NotServed) as error:
        told["said"] = str(error)[-500:]
    return told


def restarts(running: Served) -> int:
    """How often the gateway had to start its engine again."""
    told = summed(read(running.get("/metrics").decode()))
    return int(told.get("preheat_engine_restarts", 0))


def _any_length(ask: Ask, rng: random.Random) -> Ask:
    return Ask(ask.source, ask.prompt * rng.choice((1, 1, 2, 4)), rng.choice((1, 5, 20, 60)))


def prefix_caching(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Whether it is on with drafts, and who dropped it."""
    for dropped in variant.get("dropped", []):
        if dropped["lever"] == "ENABLE_PREFIX_CACHING":
            return {"on": False, "by": dropped["by"], "reason": dropped["reason"]}
    return {"on": variant.get("levers", {}).get("enable_prefix_caching", True), "reason": ""}


@contextmanager
def engine(chosen: Chosen, levers: Mapping[str, str | None], what: str) -> Iterator[Served]:
    """The variant with these levers, served; gone at the end."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        settings = place(Path(folder), chosen, levers)
        with served(settings, Path(folder) / "run") as running:
            say(f"  {what}: ready after {time.monotonic() - begun:.0f} s")
            yield running
    say(f"  {what}: done after {time.monotonic() - begun:.0f} s")


def report(told: Mapping[str, Any]) -> str:
    """For a person."""
    lines = [f"{'comparison':22} {'verdict':10} prompts  different  near ties  largest gap"]
    for name, one in told["comparisons"].items():
        gap = "-" if one["largest_gap"] is None else f"{one['largest_gap']:.4f}"
        lines.append(
            f"{name:22} {one['verdict']:10} {one['prompts']:7} {one['different']:10} "
            f"{one['near_ties']:10} {gap:>12}"
        )
    for one in told["soak"]:
        end = "sound" if one["sound"] else f"failed: {one['said']}"
        lines.append(
            f"soak K={one['k']}: {one['requests']} requests in {one['seconds']:.0f} s, {end}"
        )
    caching = told["prefix_caching"]
    if not caching["on"]:
        lines.append(f"prefix caching is off with drafts: {caching['reason'] or 'not asked for'}")
    lines += [f"{name} left out: {why}" for name, why in told["left_out"].items()]
    lines.append(told["words"])
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
