"""What an engine says of itself: its Prometheus counters before and after, as facts of a sample."""

from collections.abc import Mapping
from typing import Any

from scripts import metrics

# vLLM's name of each (0.32), without its prefix; histograms by their sum.
COUNTERS = {
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "generation_tokens_total",
    "preemptions": "num_preemptions_total",
    "prefix_queries": "prefix_cache_queries_total",
    "prefix_hits": "prefix_cache_hits_total",
    "drafts": "spec_decode_num_drafts_total",
    "drafted_tokens": "spec_decode_num_draft_tokens_total",
    "accepted_tokens": "spec_decode_num_accepted_tokens_total",
    "queue_s": "request_queue_time_seconds_sum",
    "prefill_s": "request_prefill_time_seconds_sum",
    "decode_s": "request_decode_time_seconds_sum",
}
# Histograms of what a client sees, too, in seconds; the second is a mean over each answer's tokens.
SEEN = {
    "ttft_ms": "time_to_first_token_seconds",
    "itl_ms": "request_time_per_output_token_seconds",
    "gap_ms": "inter_token_latency_seconds",
}
LATENCY = "e2e_request_latency_seconds"
KV_USE = "kv_cache_usage_perc"
PREFIX = "vllm:"
RESTARTS = "preheat_engine_restarts"


def read(text: str) -> dict[str, float]:
    """Every vLLM sample by its name less the prefix, summed over labels."""
    whole = metrics.summed(metrics.read(text))
    return {n.removeprefix(PREFIX): v for n, v in whole.items() if n.startswith(PREFIX)}


def restarts(text: str) -> int:
    """How often the gateway has started its engine again."""
    return int(metrics.summed(metrics.read(text)).get(RESTARTS, 0))


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each counter grew by; those that the engine does not have are left out."""
    return {
        ours: round(after[theirs] - before.get(theirs, 0.0), 4)
        for ours, theirs in COUNTERS.items()
        if theirs in after
    }


def means(
    before: Mapping[str, float], after: Mapping[str, float], clients: int
) -> dict[str, float]:
    """What the engine timed of the requests that ended between two readings, of which there are
    some: milliseconds, and tokens a second of so many clients, were none of them ever idle.
    """

    def growth(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    found = {
        ours: 1000 * growth(f"{theirs}_sum") / growth(f"{theirs}_count")
        for ours, theirs in SEEN.items()
    }
    pace = growth(COUNTERS["generation_tokens"]) / growth(f"{LATENCY}_sum")
    return found | {"tokens_per_s": clients * pace}


def total(facts: list[Mapping[str, float]]) -> dict[str, Any]:
    """Facts of several samples together, and what follows from them.

    Mean acceptance length is tokens a verification step: 1 + accepted drafts / steps.
    """
    names = {name for one in facts for name in one}
    summed: dict[str, Any] = {
        name: round(sum(one.get(name, 0.0) for one in facts), 4)
        for name in COUNTERS
        if name in names
    }
    if steps := summed.get("drafts"):
        summed["mean_acceptance_length"] = round(1 + summed["accepted_tokens"] / steps, 3)
        summed["draft_acceptance_rate"] = round(
            summed["accepted_tokens"] / summed["drafted_tokens"], 3
        )
    return summed
