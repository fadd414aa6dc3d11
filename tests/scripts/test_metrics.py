"""Prometheus' text as numbers."""

from scripts.metrics import by_label, read, summed

PAGE = """# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0"} 2
vllm:num_preemptions_total{engine="1"} 3
# TYPE vllm:accepted_per_pos counter
vllm:accepted_per_pos_total{engine="0",position="0"} 5
vllm:accepted_per_pos_total{engine="1",position="0"} 1
vllm:accepted_per_pos_total{engine="0",position="10"} 4
# TYPE preheat_engine_restarts gauge
preheat_engine_restarts 1
"""


def test_a_name_is_summed_over_its_labels() -> None:
    told = summed(read(PAGE))
    assert told["vllm:num_preemptions_total"] == 5
    assert told["preheat_engine_restarts"] == 1


def test_a_name_is_told_by_one_label_over_all_others() -> None:
    assert by_label(read(PAGE), "vllm:accepted_per_pos_total", "position") == {"0": 6, "10": 4}
    assert by_label(read(PAGE), "nothing", "position") == {}
