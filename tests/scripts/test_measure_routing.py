"""What a run of two policies is summed up to; the run itself needs engines."""

import pytest

from scripts import measure_routing
from scripts.fleet.router import NoRouter, router, switches


def sample(policy, round_, ttft, hits):
    return {
        "round": round_,
        "cell": "c1",
        "variant": policy,
        "wall_s": 2.0,
        "prefix_queries": [100.0, 300.0],
        "prefix_hits": hits,
        "ttft_ms": " ".join(map(str, ttft)),
        "latency_ms": " ".join(map(str, ttft)),
        "tokens": " ".join("1" for _ in ttft),
        "chunks": " ".join("1" for _ in ttft),
    }


def test_hits_are_of_all_replicas_and_times_are_paired():
    samples = [
        sample("cache_aware", 2, (30.0, 50.0), [90.0, 270.0]),
        sample("round_robin", 1, (100.0, 200.0), [0.0, 100.0]),
        sample("cache_aware", 1, (50.0, 100.0), [90.0, 270.0]),
        sample("round_robin", 2, (60.0, 100.0), [0.0, 100.0]),
    ]
    told = measure_routing.summed_up(samples)
    assert told["round_robin"]["hit_rate"] == 0.25
    assert told["cache_aware"]["hit_rate"] == 0.9
    assert told["round_robin"]["busier_replica"] == 0.75
    assert told["cache_aware"]["ttft_ms"]["mean"] == 57.5
    assert told["cache_aware"]["wall_s"] == 4.0
    # Half of it at each place: an interval without width.
    ratio = told["ttft_ratio"]
    assert (ratio["point"], ratio["low"], ratio["high"]) == (0.5, 0.5, 0.5)


def test_without_the_router_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("scripts.fleet.router.PROGRAM", tmp_path / "vllm-router")
    with (
        pytest.raises(NoRouter, match="make router"),
        router("round_robin", ["http://127.0.0.1:1"], tmp_path),
    ):
        pass


def test_an_appliance_is_asked_whether_it_is_ready():
    told = switches("cache_aware", ["http://a", "http://b"])
    assert told[told.index("--health-check-endpoint") + 1] == "/ready"
    at = told.index("--worker-urls")
    assert told[at + 1 : at + 3] == ["http://a", "http://b"]
