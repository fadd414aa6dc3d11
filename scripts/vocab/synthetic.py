"""A checkpoint with the tables of Qwen3.5-4B and random numbers in them, for time and memory."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROWS, HIDDEN = 248_320, 2560
PIECE_ROWS = 4096
TABLE = "model.language_model.embed_tokens.weight"
# What a child does, and what the system says of it at its end.
OURS = """
from bake.vocabulary import prune
made = prune(source, folder, counts, size)
told = {"bytes_before": made.bytes_before, "bytes_after": made.bytes_after, "least": made.least,
        "ancestors_only": made.ancestors_only, "unreachable": made.unreachable,
        "merges": made.merges, "seconds_of_pruning": made.seconds}
"""
# The tables alone, by the libraries: everything in memory, then indexed, then written.
PLAIN = """
import json, torch
from safetensors.torch import load_file, save_file
kept = torch.tensor(json.loads((counts.parent / "kept.json").read_text()))
tensors = load_file(source / "model.safetensors")
folder.mkdir()
save_file({n: t[kept] if len(t) > 200_000 else t for n, t in tensors.items()},
          folder / "model.safetensors")
told = {}
"""
CHILD = """
import json, resource, sys
from pathlib import Path
source, folder, counts, size = *map(Path, sys.argv[1:4]), int(sys.argv[4])
{body}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(dict(told, peak_bytes=peak)))
"""


def command(kind: str, source: Path, folder: Path, counts: Path, size: int) -> list[str]:
    """What runs ``ours`` or ``plain`` in a process of its own, which tells its peak memory."""
    body = CHILD.format(body=OURS if kind == "ours" else PLAIN)
    return [sys.executable, "-c", body, str(source), str(folder), str(counts), str(size)]


def write(folder: Path, tokenizer: Path) -> None:
    """A folder of 1.27 GB: one tied table, a norm, a config as Qwen3.5-4B's, the tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=1))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    size = ROWS * HIDDEN * 2
    header = json.dumps(
        {
            TABLE: {"dtype": "BF16", "shape": [ROWS, HIDDEN], "data_offsets": [0, size]},
            "model.language_model.norm.weight": {
                "dtype": "BF16",
                "shape": [HIDDEN],
                "data_offsets": [size, size + HIDDEN * 2],
            },
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for at in range(0, ROWS + 1, PIECE_ROWS):
            rows = min(PIECE_ROWS, ROWS - at)
            out.write(random.integers(0, 2**16, rows * HIDDEN, np.uint16).tobytes())
        out.write(random.integers(0, 2**16, HIDDEN, np.uint16).tobytes())


def config() -> Mapping[str, Any]:
    """As far as pruning looks at it."""
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "image_token_id": 248_056,
        "video_token_id": 248_057,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_5_text",
            "hidden_size": HIDDEN,
            "vocab_size": ROWS,
            "eos_token_id": 248_044,
            "tie_word_embeddings": True,
        },
    }
