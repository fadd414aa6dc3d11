"""Measures a conversion: GGUF of Q4_K → a BF16 folder, its seconds and its memory.

Against the plain way in Python (gguf-py reads and dequantizes, safetensors writes), and against
the floor: the same bytes written to the same disk. Each is a process of its own, in turn; its
peak memory is what the kernel says while it runs. The model is made for it, of random blocks,
shaped as Llama. Budget of memory: three times the largest tensor, and 500 MB.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.quiet import timed
from scripts.starts import NotMeasured
from serve.plan import versions
from serve.settings import REPOSITORY

HIDDEN, INNER, HEADS, TOKENS = 4096, 11008, 32, 32000
BLOCK, BLOCK_BYTES = 256, 144
BUDGET = 500 * 10**6
OTHERS, TRIES = 0.03, 10
EXAMPLES = """examples:
  python -m scripts.measure_conversion_cost
  python -m scripts.measure_conversion_cost --layers 8 --rounds 5 --folder /mnt/disk
  python -m scripts.measure_conversion_cost --layers 1 --rounds 1 --no-record
"""
# gguf-py's own arithmetic, and BF16 by its own rounding; written as its bits, since NumPy has no
# such type.
PLAIN = """
import sys
from safetensors.numpy import save_file
from gguf import GGUFReader
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
made = {}
for tensor in GGUFReader(sys.argv[1]).tensors:
    numbers = dequantize(tensor.data, tensor.tensor_type)
    made[tensor.name] = quantize(numbers, Type.BF16)
save_file(made, sys.argv[2] + "/model.safetensors")
"""
# Zeros of memory, in pieces: no reading, no arithmetic.
FLOOR = """
import os, sys
piece = bytearray(2**22)
with open(sys.argv[2] + "/model.safetensors", "wb", buffering=0) as file:
    left = int(sys.argv[3])
    while left > 0:
        left -= file.write(piece[:left])
    os.fsync(file.fileno())
"""
Ran = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when not, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    with tempfile.TemporaryDirectory(prefix="preheat-", dir=parsed.folder) as folder:
        source = Path(folder) / "model.gguf"
        about = write_model(source, parsed.layers)
        ways = commands(source, about["bytes_bf16"])
        turns = [(name, argv) for _ in range(parsed.rounds) for name, argv in ways.items()]
        samples: list[Ran] = []
        try:
            for name, argv in track(turns, "measuring", console=Console(stderr=True)):
                samples += sampled(name, argv, Path(folder) / "out")
        except NotMeasured as error:
            print(f"not measured: {error}", file=sys.stderr)
            return 1
    record = Record(
        kind="conversion-cost",
        made=made,
        command=["python", "-m", "scripts.measure_conversion_cost", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions()},
        parameters={**about, "rounds": parsed.rounds},
        summary=summary(samples, about),
        samples=samples,
    )
    show(record.summary)
    if parsed.json:
        print(json.dumps(record.summary, indent=1))
    if parsed.record:
        print(f"wrote {add(record, MEASUREMENTS).relative_to(REPOSITORY)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_conversion_cost",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--layers", type=int, default=4, help="of 202 M weights each (4)")
    top.add_argument("--rounds", type=int, default=3, help="samples of each way (3)")
    top.add_argument("--folder", type=Path, help="where the model is made (TMPDIR)")
    top.add_argument("--json", action="store_true", help="figures for programs")
    top.add_argument("--no-record", dest="record", action="store_false", help="keep nothing")
    return top


def write_model(path: Path, layers: int) -> dict[str, Any]:
    """A Llama of random Q4_K blocks, by gguf-py. Tells what it is."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    # A merge is wanted; nobody reads a text with this model.
    words = ["a", "b", "ab"]
    writer.add_token_list([*words, *(chr(0x4E00 + at) for at in range(TOKENS - len(words)))])
    writer.add_token_types([1] * len(words) + [4] * (TOKENS - len(words)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = tensors(layers)
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, *numbers(shape, random))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    elements = [int(np.prod(shape)) for shape in shapes.values()]
    return {
        "layers": layers,
        "tensors": len(shapes),
        "bytes_q4_k": path.stat().st_size,
        "bytes_bf16": 2 * sum(elements),
        "largest_tensor_bytes": 2 * max(elements),
    }


def tensors(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes, rows first."""
    square, wide = (HIDDEN, HIDDEN), (INNER, HIDDEN)
    inner = {
        "attn_q.weight": square,
        "attn_k.weight": square,
        "attn_v.weight": square,
        "attn_output.weight": square,
        "ffn_gate.weight": wide,
        "ffn_up.weight": wide,
        "ffn_down.weight": (HIDDEN, INNER),
        "attn_norm.weight": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
    }
    blocks = {f"blk.{at}.{name}": shape for at in range(layers) for name, shape in inner.items()}
    return {"token_embd.weight": (TOKENS, HIDDEN), "output_norm.weight": (HIDDEN,), **blocks}


def numbers(shape: tuple[int, ...], random: np.random.Generator) -> tuple[Any, ...]:
    """What ``add_tensor`` takes: float32 for vectors, blocks with sane scales for matrices."""
    if len(shape) == 1:
        return (np.ones(shape, np.float32),)
    blocks = random.integers(0, 256, (shape[0], shape[1] // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    blocks[..., :4].view(np.float16)[:] = np.float16(0.001)
    rows = blocks.reshape(shape[0], -1)
    return rows, rows.shape, GGMLQuantizationType.Q4_K


def commands(source: Path, total: int) -> Mapping[str, Callable[[Path], list[str]]]:
    """argv of each way, for the folder it writes into."""
    python = sys.executable

    def ours(out: Path) -> list[str]:
        made = str(out / "made")
        return [python, "-m", "bake", "convert", str(source), made, "--json"]

    return {
        "preheat": ours,
        "gguf-py": lambda out: [python, "-c", PLAIN, str(source), str(out)],
        "write only": lambda out: [python, "-c", FLOOR, "", str(out), str(total)],
    }


def sampled(name: str, argv: Callable[[Path], list[str]], out: Path) -> list[Ran]:
    """Samples until one is quiet; that is the last.

    :raises NotMeasured: none was, or the command failed.
    """
    taken: list[Ran] = []
    for _ in range(TRIES):
        out.mkdir()
        with timed() as sample:
            peak = run(argv(out))
        shutil.rmtree(out)
        quiet = sample.others <= OTHERS
        seconds = round(sample.seconds, 4)
        taken.append(
            {"way": name, "seconds": seconds, "peak_bytes": peak, "others": sample.others}
            | {"quiet": quiet}
        )
        if quiet:
            return taken
    raise NotMeasured(f"others took more than {OTHERS:.0%} of this machine, {TRIES} times")


def run(argv: list[str]) -> int:
    """Run it to its end; its peak resident memory in bytes, as it was a hundredth before.

    What ``wait4`` says begins with this process's own memory, which the child shares until it
    executes.

    :raises NotMeasured: it failed.
    """
    peak = 0
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        with suppress(OSError):
            status = Path(f"/proc/{child.pid}/status").read_text()
            found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
            peak = max(peak, int(found[1]) * 1024) if found else peak
        time.sleep(0.01)
    if child.returncode:
        raise NotMeasured(f"{' '.join(argv[:5])} … failed")
    return peak


def summary(samples: Sequence[Ran], about: Mapping[str, Any]) -> dict[str, Any]:
    """Medians of the quiet samples, and what follows from them."""
    told: dict[str, Any] = {}
    for way in dict.fromkeys(taken["way"] for taken in samples):
        kept = [taken for taken in samples if taken["way"] == way and taken["quiet"]]
        seconds = statistics.median(taken["seconds"] for taken in kept)
        told[way] = {
            "median_seconds": seconds,
            "gigabytes_per_second": round(about["bytes_bf16"] / seconds / 1e9, 3),
            "peak_bytes": max(taken["peak_bytes"] for taken in kept),
            "samples": len(kept),
        }
    ours, plain = told["preheat"], told["gguf-py"]
    told["times_gguf_py"] = round(plain["median_seconds"] / ours["median_seconds"], 2)
    told["budget_bytes"] = 3 * about["largest_tensor_bytes"] + BUDGET
    told["within_budget"] = ours["peak_bytes"] <= told["budget_bytes"]
    return told


def show(told: Mapping[str, Any]) -> None:
    """The figures as a table."""
    table = Table("way", "seconds", "GB/s of BF16", "peak MB")
    for way, figures in told.items():
        if isinstance(figures, dict):
            table.add_row(
                way,
                f"{figures['median_seconds']:.2f}",
                f"{figures['gigabytes_per_second']:.2f}",
                f"{figures['peak_bytes'] / 1e6:.0f}",
            )
    Console(stderr=True).print(table)
    fits = "within" if told["within_budget"] else "BEYOND"
    print(f"{told['times_gguf_py']} times gguf-py; {fits} {told['budget_bytes'] / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
