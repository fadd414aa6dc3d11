"""Measures how fast a blob gives its weights back, each tensor's SHA-256 checked.

The blob has the shapes of Qwen3-8B: 36 blocks, untied embeddings, 16.4 GB of BF16, random numbers
in INT5. Beside it, in the same run, what no reader can beat on this machine: decoding alone and
SHA-256 alone on the same pieces, so ``1 / (1/decode + 1/sha256)``; and the plain way, which decodes
a whole tensor by the serial reference and hashes it afterwards, on a few blocks.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bake.weights.pack import pack
from blob.blob import Blob
from blob.codecs import RowCodec
from blob.codecs.bfloat16 import from_float32
from blob.manifest import Tensor
from blob.proof import Clock
from blob.recipe import Recipe
from blob.reconstruct import stream
from blob.registry import codec_of
from blob.restore import PIECE_BYTES, flat, restore, scratch_for
from blob.rows import of_rows, pieces, sliced
from blob.store import Store
from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.quiet import Sample, sampled
from scripts.starts import NotMeasured
from serve.plan import versions

SEED = 20261121
EXAMPLES = """examples:
  python -m scripts.measure_reconstruct
  python -m scripts.measure_reconstruct --blocks 4 --codec q6_k --samples 3 --folder /mnt/disk
"""


@dataclass(frozen=True)
class Shape:
    """Of a dense model, as its config tells it (Qwen3-8B's by default)."""

    blocks: int = 36
    hidden: int = 4096
    intermediate: int = 12288
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    vocabulary: int = 151936

    def block(self) -> dict[str, tuple[int, ...]]:
        """Tensors of one block."""
        query, key = self.heads * self.head, self.kv_heads * self.head
        return {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (key, self.hidden),
            "self_attn.v_proj": (key, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "self_attn.q_norm": (self.head,),
            "self_attn.k_norm": (self.head,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }

    def shards(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Tensors of every file: one for each block, and the rest."""
        files = {
            f"block-{number:02}": {
                f"model.layers.{number}.{name}.weight": shape
                for name, shape in self.block().items()
            }
            for number in range(self.blocks)
        }
        outer = (self.vocabulary, self.hidden)
        files["embed"] = {"model.embed_tokens.weight": outer, "model.norm.weight": (self.hidden,)}
        files["head"] = {"lm_head.weight": outer}
        return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when the machine was never idle, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    threads = sorted({1, *(2**n for n in range(1, 8) if 2**n <= machine.cores), machine.cores})
    shape = Shape(blocks=parsed.blocks, vocabulary=parsed.vocabulary)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="preheat-", dir=parsed.folder) as folder:
        root = Path(folder)
        console.print(f"making a checkpoint of {parsed.blocks} blocks in {root}")
        synthesize(root / "checkpoint", shape)
        console.print(f"packing it as {parsed.codec}")
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("packing", total=None)
            packed = pack(
                root / "checkpoint",
                Recipe(parsed.codec),
                root / "blob",
                Store(root / "store"),
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        shutil.rmtree(root / "checkpoint")
        blob = Blob.open(root / "blob")
        os.sync()
        try:
            samples = measure(blob, threads, parsed.samples, parsed.naive_blocks, console)
        except NotMeasured as error:
            print(f"not measured: {error}", file=sys.stderr)
            return 1
    figures = summary(samples, blob, packed.seconds)
    record = Record(
        kind="reconstruct",
        made=made,
        command=["python", "-m", "scripts.measure_reconstruct", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions()},
        parameters={
            "shape": vars(shape),
            "recipe": dict(blob.manifest.recipe),
            "piece_bytes": PIECE_BYTES,
            "samples": parsed.samples,
            "naive_blocks": parsed.naive_blocks,
            "seed": SEED,
        },
        summary=figures,
        samples=samples,
    )
    path = add(record, parsed.record)
    print(json.dumps(figures, indent=1) if parsed.json else "", end="")
    if not parsed.json:
        Console().print(table(figures))
    print(f"wrote {path}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_reconstruct",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--blocks", type=int, default=36, help="transformer blocks (36)")
    top.add_argument("--vocabulary", type=int, default=151936, help="rows of embeddings (151936)")
    top.add_argument("--codec", default="int5", help="of the blocks' linears (int5)")
    top.add_argument("--samples", type=int, default=5, help="of each kind (5)")
    top.add_argument("--naive-blocks", type=int, default=1, help="decoded the plain way (1)")
    top.add_argument("--folder", type=Path, help="scratch: 22 GB for 36 blocks (TMPDIR)")
    top.add_argument("--record", type=Path, default=MEASUREMENTS, help="folder of records")
    top.add_argument("--json", action="store_true", help="figures as JSON")
    return top


def synthesize(folder: Path, shape: Shape) -> None:
    """A checkpoint of random numbers (σ = 0.02), each tensor its own, the same at each run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}\n')

    def write(item: tuple[int, tuple[str, dict[str, tuple[int, ...]]]]) -> None:
        number, (name, tensors) = item
        random = np.random.Generator(np.random.SFC64([SEED, number]))
        arrays = {
            key: from_float32(random.standard_normal(size, np.float32) * np.float32(0.02))
            for key, size in tensors.items()
        }
        specs = {
            key: safetensors.TensorSpec(
                dtype="bfloat16",
                shape=list(array.shape),
                data_ptr=array.ctypes.data,
                data_len=array.nbytes,
            )
            for key, array in arrays.items()
        }
        safetensors.serialize_file(specs, str(folder / f"{name}.safetensors"), None)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, enumerate(shape.shards().items())))


def measure(
    blob: Blob, threads: Sequence[int], samples: int, naive_blocks: int, console: Console
) -> list[dict[str, Any]]:
    """Every kind in turn, so that a slow minute of the machine is everybody's."""
    # Compiles the kernels, and has the blob in the page cache.
    for _ in stream(blob):
        pass
    kinds: dict[str, Callable[[int], Any]] = {
        "decode": lambda n: decode_only(blob, n),
        "sha256": lambda n: sha256_only(blob, n),
        "pieces": lambda n: prove_all(blob, n),
        "tensors": lambda n: stream_all(blob, n),
    }
    taken: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=samples * len(threads) * len(kinds) + 1)
        for _ in range(samples):
            for number in threads:
                for kind, work in kinds.items():
                    taken.append(one(kind, number, lambda w=work, n=number: w(n)))  # type: ignore[misc]
                    bar.advance(task)
        taken.append(one("naive", 1, lambda: naive(blob, naive_blocks)))
        taken[-1]["blocks"] = naive_blocks
    return taken


def one(kind: str, threads: int, work: Callable[[], Any]) -> dict[str, Any]:
    """A sample, and what was rejected before it."""
    told: dict[str, Any] = {}

    def run() -> None:
        told.update(work() or {})

    sample, rejected = sampled(run)
    noted = [_described(bad) for bad in rejected]
    return {"kind": kind, "threads": threads, **_described(sample), "rejected": noted, **told}


def _described(sample: Sample) -> dict[str, float]:
    return {"seconds": round(sample.seconds, 4), "others": sample.others}


def quantized(blob: Blob) -> list[Tensor]:
    """Tensors that have to be decoded."""
    return [tensor for tensor in blob.manifest.tensors if tensor.codec != "raw"]


def spread(
    work: Callable[[Tensor, Any], None], tensors: Iterable[Tensor], threads: int, scratch: int
) -> None:
    """``work`` on each tensor, on as many threads, each with memory of its own."""
    todo = iter(sorted(tensors, key=lambda tensor: -tensor.size))

    def some(_: int) -> None:
        mine = np.empty(scratch, np.uint8)
        # next() on a list's iterator is one step of the interpreter: no two threads get the same.
        while (tensor := next(todo, None)) is not None:
            work(tensor, mine)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))


def decode_only(blob: Blob, threads: int) -> None:
    """All that is to be decoded, piece by piece into one place: nothing is hashed or kept."""

    def work(tensor: Tensor, scratch: Any) -> None:
        codec = codec_of(tensor.codec, tensor.params, tensor.name)
        assert isinstance(codec, RowCodec)  # noqa: S101 - a recipe of rows made it
        rows, cols = tensor.rows_and_cols
        parts = of_rows(codec, blob.parts(tensor), cols)
        for part in pieces(rows, cols, PIECE_BYTES // 2):
            size = (part.stop - part.start) * cols * 2
            codec.decode(sliced(parts, part), scratch[:size].view(np.uint16).reshape(-1, cols))

    tensors = quantized(blob)
    spread(work, tensors, threads, scratch_for(tensors).nbytes)


def sha256_only(blob: Blob, threads: int) -> None:
    """As many bytes as the blob gives back, tensor by tensor, from one piece in the cache."""

    def work(tensor: Tensor, scratch: Any) -> None:
        digest, left = hashlib.sha256(), tensor.size
        while left > 0:
            digest.update(scratch[: min(left, PIECE_BYTES)].data)
            left -= PIECE_BYTES

    spread(work, blob.manifest.tensors, threads, PIECE_BYTES)


def prove_all(blob: Blob, threads: int) -> None:
    """Every tensor decoded and checked, each piece in the place of the last."""

    def work(tensor: Tensor, scratch: Any) -> None:
        restore(blob, tensor, Clock(), None, scratch)

    tensors = blob.manifest.tensors
    spread(work, tensors, threads, scratch_for(tensors).nbytes)


def stream_all(blob: Blob, threads: int) -> dict[str, Any]:
    """Every tensor decoded into memory and checked, as a model's loader gets them."""
    given = stream(blob, threads)
    for _ in given:
        pass
    phases = {phase: round(seconds, 4) for phase, seconds in given.seconds.items()}
    return {"phases": phases, "buffers": given.buffers.nbytes}


def naive(blob: Blob, blocks: int) -> None:
    """The plain way: a whole tensor by the serial reference, rounded, then hashed."""
    for number in range(blocks):
        inside = f"model.layers.{number}."
        for tensor in blob.manifest.tensors:
            if not tensor.name.startswith(inside):
                continue
            codec = codec_of(tensor.codec, tensor.params, tensor.name)
            parts = blob.parts(tensor)
            if isinstance(codec, RowCodec):
                _, cols = tensor.rows_and_cols
                whole = flat(from_float32(codec.decode_reference(of_rows(codec, parts, cols))))
            else:
                whole = flat(parts[""])
            if hashlib.sha256(whole).hexdigest() != tensor.sha256:
                raise RuntimeError(f"{tensor.name}: the reference gives other bytes")


def summary(samples: Sequence[dict[str, Any]], blob: Blob, pack_seconds: float) -> dict[str, Any]:
    """Medians, rates, and how near to the limit."""
    total = blob.manifest.size
    decoded = sum(tensor.size for tensor in quantized(blob))
    figures: dict[str, Any] = {
        "bytes": total,
        "stored_bytes": blob.manifest.stored_size,
        "pack_seconds": pack_seconds,
        "threads": {},
    }
    for threads in sorted({sample["threads"] for sample in samples}):
        median = {
            kind: statistics.median(s["seconds"] for s in chosen)
            for kind in ("decode", "sha256", "pieces", "tensors")
            if (chosen := [s for s in samples if (s["kind"], s["threads"]) == (kind, threads)])
        }
        limit = median["decode"] + median["sha256"]
        figures["threads"][str(threads)] = {
            "decode_gb_per_s": round(decoded / median["decode"] / 1e9, 3),
            "sha256_gb_per_s": round(total / median["sha256"] / 1e9, 3),
            "limit_seconds": round(limit, 3),
            "pieces_seconds": round(median["pieces"], 3),
            "pieces_of_limit": round(limit / median["pieces"], 3),
            "tensors_seconds": round(median["tensors"], 3),
            "tensors_of_limit": round(limit / median["tensors"], 3),
            "verified_gb_per_s": round(total / median["pieces"] / 1e9, 3),
        }
    plain = [sample for sample in samples if sample["kind"] == "naive"]
    if plain and plain[0]["blocks"]:
        of_one = plain[0]["seconds"] / plain[0]["blocks"]
        inside = sum(t.size for t in blob.manifest.tensors if t.name.startswith("model.layers.0."))
        figures["naive_seconds_per_block"] = round(of_one, 3)
        figures["naive_gb_per_s"] = round(inside / of_one / 1e9, 4)
    return figures


def table(figures: dict[str, Any]) -> Table:
    """For a person."""
    made = Table(title=f"{figures['bytes'] / 1e9:.1f} GB given back and proven")
    for column in ("threads", "decode GB/s", "SHA-256 GB/s", "limit s", "pieces s", "tensors s"):
        made.add_column(column, justify="right")
    for threads, row in figures["threads"].items():
        made.add_row(
            threads,
            f"{row['decode_gb_per_s']:.2f}",
            f"{row['sha256_gb_per_s']:.2f}",
            f"{row['limit_seconds']:.2f}",
            f"{row['pieces_seconds']:.2f} ({row['pieces_of_limit']:.0%})",
            f"{row['tensors_seconds']:.2f} ({row['tensors_of_limit']:.0%})",
        )
    if "naive_seconds_per_block" in figures:
        made.caption = f"the plain way: {figures['naive_seconds_per_block']:.2f} s for one block"
    return made


if __name__ == "__main__":
    sys.exit(main())
