"""Stock vLLM serves what was quantized, and reads a text as the dequantized weights do.

No patch of ours but the one that lets torchvision be imported: the folder alone must do.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bake.checkpoint.convert import convert
from bake.quantize import Recipe, quantize
from serve.settings import REPOSITORY
from tests.hardware import avx512

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

TINY = REPOSITORY / "weights" / "tiny"
ASK = """
import json, sys
from serve.plugin import torchvision_ops
if torchvision_ops.needed():
    torchvision_ops.apply()
from vllm import LLM, SamplingParams
folder, k, texts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
drafts = {"speculative_config": {"method": "mtp", "num_speculative_tokens": k}} if k else {}
engine = LLM(folder, dtype="bfloat16", max_model_len=512, max_num_seqs=4, enforce_eager=True,
             enable_prefix_caching=False, disable_log_stats=False, **drafts)
asked = SamplingParams(temperature=0, max_tokens=24, prompt_logprobs=0)
told = engine.generate(texts, asked)
read = [[next(iter(one.values())).logprob for one in out.prompt_logprobs[1:]] for out in told]
counts = [one for one in engine.get_metrics() if "spec_decode" in one.name]
drawn = {one.name: one.value for one in counts if hasattr(one, "value")}
print("TOLD" + json.dumps([read, [list(out.outputs[0].token_ids) for out in told], drawn]))
"""


def texts() -> list[str]:
    rows = (TINY / "heldout.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(row)["text"][:500] for row in rows[:8]]


def engine(
    folder: Path, drafts: int = 0
) -> tuple[list[list[float]], list[list[int]], dict[str, Any]]:
    """What vLLM, in a process of its own, says of each token of the texts, and goes on with."""
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(folder), str(drafts), json.dumps(texts())],
        env={**os.environ, **quiet, **alone},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "CPUWNA16" in done.stdout + done.stderr or "plain" in folder.name
    line = next(row for row in done.stdout.splitlines() if row.startswith("TOLD"))
    read, tokens, drawn = json.loads(line.removeprefix("TOLD"))
    return read, tokens, drawn


@avx512
@pytest.mark.parametrize(
    ("recipe", "drafts"),
    [
        (Recipe("rtn-w4a16"), 0),
        (Recipe("rtn-w4a16", "linear", lm_head=True), 3),
    ],
    ids=["mlp", "linears, head and drafter"],
)
def test_it_reads_and_answers_as_its_plain_weights(tmp_path, recipe, drafts):
    quantize(TINY, tmp_path / "w4", recipe, tmp_path / "no-corpus")
    convert(tmp_path / "w4", tmp_path / "plain")
    read, tokens, drawn = engine(tmp_path / "w4", drafts)
    plain, greedy, _ = engine(tmp_path / "plain")
    apart = [
        abs(a - b)
        for one, two in zip(read, plain, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    # The kernels add up in another order, in BF16.
    assert sum(apart) / len(apart) < 0.03
    mine, theirs = (math.exp(-sum(map(sum, it)) / len(apart)) for it in (read, plain))
    assert abs(mine / theirs - 1) < 0.005
    same = [a == b for a, b in zip(tokens, greedy, strict=True)]
    assert sum(same) >= len(same) - 2
    if drafts:
        accepted = drawn["vllm:spec_decode_num_accepted_tokens"]
        assert accepted / drawn["vllm:spec_decode_num_draft_tokens"] > 0.3
