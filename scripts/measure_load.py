"""Measures how a model gets its weights: blobs, stock loaders, and quantizing at each load.

A checkpoint of Qwen3.5's shape is made for it, the same for the same size: normal numbers by a
fixed seed, the tiny model's tokenizer. Every way of loading it runs in this process, without an
engine, in turns, so that a slow minute of the machine is everybody's. The first turn compiles and
is kept, but counts for no figure. A cold sample begins with none of the files in the page cache.
A sample during which others took processor time is taken again, a few times; those rejected are
kept, too, and count for no figure.

Phases: a way's own, and ``create`` (an empty model), ``load``, ``post-process``, which vLLM does.
``map`` to ``copy`` lie in ``load``; ``decode``, ``verify`` are seconds of threads, side by side.
"""

import argparse
import ctypes
import gc
import importlib
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.quiet import timed
from serve.command import EARLY
from serve.plan import versions
from serve.plugin import alone
from serve.plugin.patches import TORCHVISION_OPS, apply_all
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"
SHARD_BYTES = 512 * 10**6
# Times that a sample is taken until it is quiet, and seconds between two of them.
TRIES = 5
PAUSE_SECONDS = 1
# What a layer of the checkpoint measures; as Qwen3.5's smallest, with the tiny vocabulary.
HIDDEN, INTERMEDIATE, HEAD, HEADS, KV_HEADS = 1024, 3584, 128, 8, 2
KEY_HEADS, VALUE_HEADS = 8, 16
EXAMPLES = """examples:
  python -m scripts.measure_load
  python -m scripts.measure_load --gigabytes 2 --samples 7 --peers /tmp/peers
where /tmp/peers was made by: pip install --no-deps --target /tmp/peers runai-model-streamer
"""


@dataclass(frozen=True)
class Way:
    """One way to load. ``codec``: that of the blob it reads; none for the checkpoint."""

    load_format: str
    codec: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


WAYS: Mapping[str, Way] = {
    "default": Way("auto"),
    "default, 2 threads": Way("auto", extra={"enable_multithread_load": True, "num_threads": 2}),
    "runai_streamer": Way("runai_streamer", needs="runai_model_streamer"),
    "fastsafetensors": Way("fastsafetensors", needs="fastsafetensors"),
    "blob raw": Way("preheat", "raw"),
    "blob zipnn": Way("preheat", "zipnn"),
    "blob int5": Way("preheat", "int5"),
    "blob q6_k": Way("preheat", "q6_k"),
    "blob int4": Way("preheat", "int4"),
    "in situ int5": Way("preheat", extra={"quantize": "int5"}),
    "in situ q6_k": Way("preheat", extra={"quantize": "q6_k"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when nothing could be loaded, 2 usage."""
    parsed = parser().parse_args(arguments)
    prepare(parsed.peers)
    made, machine = now(), this_machine()
    with tempfile.TemporaryDirectory(prefix="preheat-", dir=parsed.folder) as folder:
        checkpoint = Path(folder) / "checkpoint"
        total = make(checkpoint, int(parsed.gigabytes * 1e9))
        codecs = {way.codec for way in WAYS.values() if way.codec}
        blobs = {codec: blob_of(checkpoint, Path(folder), codec) for codec in sorted(codecs)}
        os.sync()
        samples, left_out = measure(checkpoint, blobs, parsed.samples)
        sizes = {"checkpoint": size_of(checkpoint), **{k: size_of(v) for k, v in blobs.items()}}
    if not any(counts(taken) for taken in samples):
        least = min((taken["others"] for taken in samples), default=0.0)
        told = f"others took {least:.0%} of this machine or more; left out: {left_out or 'none'}"
        print(f"nothing was measured: {told}", file=sys.stderr)
        return 1
    record = Record(
        kind="load",
        made=made,
        command=["python", "-m", "scripts.measure_load", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions()},
        parameters={
            "bytes": total,
            "stored_bytes": sizes,
            "samples": parsed.samples,
            "left_out": left_out,
        },
        summary=summary(samples),
        samples=samples,
    )
    path = add(record, MEASUREMENTS)
    print(json.dumps(record.summary, indent=1))
    print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_load",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--gigabytes", type=float, default=1.0, help="of BF16 weights, 10^9 (1)")
    top.add_argument("--samples", type=int, default=5, help="of each kind (5)")
    top.add_argument("--folder", type=Path, help="where models are made (TMPDIR)")
    top.add_argument("--peers", type=Path, help="folder of packages that are not installed")
    return top


def prepare(peers: Path | None) -> None:
    """What an engine's process has before vLLM is imported."""
    sys.path += [str(peers)] if peers else []
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "preheat"}
    # For the process in which vLLM inspects a model; in this one the patch is applied at once.
    os.environ |= {**environment, "PYTHONPATH": f"{EARLY}:{REPOSITORY}"}
    apply_all([TORCHVISION_OPS])
    logging.disable(logging.WARNING)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors: three linear-attention layers to each of full attention."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (16384, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    keys, values = KEY_HEADS * HEAD, VALUE_HEADS * HEAD
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found |= {
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
            f"{at}mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{at}mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
        if layer % 4 == 3:
            at += "self_attn."
            found |= {
                f"{at}q_proj.weight": (2 * HEADS * HEAD, HIDDEN),
                f"{at}k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
                f"{at}v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
                f"{at}o_proj.weight": (HIDDEN, HEADS * HEAD),
                f"{at}q_norm.weight": (HEAD,),
                f"{at}k_norm.weight": (HEAD,),
            }
            continue
        at += "linear_attn."
        found |= {
            f"{at}A_log": (VALUE_HEADS,),
            f"{at}dt_bias": (VALUE_HEADS,),
            f"{at}norm.weight": (HEAD,),
            f"{at}conv1d.weight": (2 * keys + values, 1, 4),
            f"{at}in_proj_a.weight": (VALUE_HEADS, HIDDEN),
            f"{at}in_proj_b.weight": (VALUE_HEADS, HIDDEN),
            f"{at}in_proj_qkv.weight": (2 * keys + values, HIDDEN),
            f"{at}in_proj_z.weight": (values, HIDDEN),
            f"{at}out_proj.weight": (HIDDEN, values),
        }
    return found


def layers_for(total: int) -> int:
    """How many layers, in fours, come nearest to ``total`` bytes."""
    base, four = bytes_of(shapes(0)), bytes_of(shapes(4)) - bytes_of(shapes(0))
    return 4 * max(1, round((total - base) / four))


def bytes_of(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Of BF16 numbers."""
    return sum(2 * int(np.prod(shape)) for shape in tensors.values())


def make(folder: Path, total: int) -> int:
    """Write the checkpoint of about ``total`` bytes; tells how many they are."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    layers = layers_for(total)
    tensors = shapes(layers)
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, Any] = {}
    index: dict[str, str] = {}
    shards = 0
    for name, shape in tensors.items():
        numbers = torch.randn(shape, generator=generator) * 0.02
        shard[name] = numbers.to(torch.bfloat16)
        index[name] = f"model-{shards:05}.safetensors"
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            save_file(shard, folder / index[name])
            shard, shards = {}, shards + 1
    if shard:
        save_file(shard, folder / f"model-{shards:05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    return bytes_of(tensors)


def config(layers: int) -> dict[str, Any]:
    """The tiny model's, widened."""
    kinds = ["full_attention" if layer % 4 == 3 else "linear_attention" for layer in range(layers)]
    made: dict[str, Any] = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    return made | {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "head_dim": HEAD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "linear_key_head_dim": HEAD,
        "linear_value_head_dim": HEAD,
        "linear_num_key_heads": KEY_HEADS,
        "linear_num_value_heads": VALUE_HEADS,
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "mtp_num_hidden_layers": 0,
    }


def blob_of(checkpoint: Path, folder: Path, codec: str) -> Path:
    """The blob that ``preheat bake pack --codec`` makes."""
    from bake.weights.pack import pack
    from blob.recipe import Recipe
    from blob.store import Store

    recipe = Recipe(codec, targets="mlp") if codec == "int4" else Recipe(codec)
    pack(checkpoint, recipe, folder / codec, Store(folder / "store"))
    return folder / codec


def size_of(folder: Path) -> int:
    """Bytes of its safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def measure(
    checkpoint: Path, blobs: Mapping[str, Path], turns: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every sample, and why some ways have none."""
    left_out: dict[str, str] = {}
    samples: list[dict[str, Any]] = []
    # Turn 0 compiles; the last one is watched for its memory and not timed.
    rounds = [(turn, name, cache) for turn in range(turns + 2) for name in WAYS for cache in STATES]
    with alone.worker(alone.Job(model=str(checkpoint), load_format="auto")):
        for turn, name, cache in shown(rounds):
            if name in left_out or (cache == "cold" and not 0 < turn <= turns):
                continue
            folder = blobs.get(WAYS[name].codec, checkpoint)
            # Kept, and told apart by its turn.
            of: dict[str, Any] = {
                "way": name,
                "cache": cache,
                "turn": turn if turn <= turns else -1,
            }
            take = partial(prepared, folder, name, cache, watch=turn > turns)
            try:
                taken = quiet(take, TRIES if of["turn"] > 0 else 1)
            except Exception as error:
                left_out[name] = why(WAYS[name], error)
                continue
            samples += [{**of, **one} for one in taken]
    return samples, left_out


def prepared(folder: Path, name: str, cache: str, *, watch: bool) -> dict[str, Any]:
    """A sample that begins with the page cache in the state ``cache``."""
    STATES[cache](folder)
    return sample(folder, WAYS[name], watch=watch)


def quiet(take: Callable[[], dict[str, Any]], tries: int) -> list[dict[str, Any]]:
    """Samples up to the first quiet one, ``tries`` at most; those that are not are ``rejected``."""
    samples: list[dict[str, Any]] = []
    for left in reversed(range(tries)):
        samples.append(take())
        if not samples[-1]["rejected"]:
            break
        if left:
            time.sleep(PAUSE_SECONDS)
    return samples


def counts(taken: Mapping[str, Any]) -> bool:
    """Whether a sample counts for a figure of time."""
    return taken["turn"] > 0 and not taken["rejected"]


def why(way: Way, error: Exception) -> str:
    """Why a way cannot be measured here."""
    try:
        importlib.import_module(way.needs or "json")
    except ImportError as missing:
        return f"not installed: {missing}"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def sample(folder: Path, way: Way, *, watch: bool) -> dict[str, Any]:
    """One load: seconds by phase, and what others took; with ``watch``, how much memory it took.

    ``rejected`` when others took so much that its seconds are not those of this load.
    """
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    # An engine's process has nothing to take again: what the last model left in the allocator,
    # pages that are there already, would make a load faster than any start and hide its memory.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    job = alone.Job(model=str(folder), load_format=way.load_format, extra=way.extra)
    with alone.configured(job) as configured, timed() as whole:
        role = configured.model_config
        began = time.perf_counter()
        with alone.empty(configured, role) as (model, loader):
            created = time.perf_counter()
            with watched(model, enabled=watch) as memory:
                loader.load_weights(model, role)
            loaded = time.perf_counter()
            process_weights_after_loading(model, role, configured.device_config.device)
            processed = time.perf_counter()
        report = getattr(loader, "report", {})
    seconds = {
        "create": created - began,
        "load": loaded - created,
        "post-process": processed - loaded,
        **report.get("seconds", {}),
    }
    return {
        "seconds": {phase: round(value, 4) for phase, value in seconds.items()},
        "others": whole.others,
        "rejected": not whole.quiet,
        **({"memory": memory} if watch else {}),
    }


@contextmanager
def watched(model: Any, *, enabled: bool) -> Iterator[dict[str, int]]:
    """Anonymous memory before, at most, and after; asked for every few milliseconds.

    ``weights`` of it are the model's: allocated before, and there once they are written.
    """
    told: dict[str, int] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.003):
            told["most"] = max(told["most"], anonymous())

    if not enabled:
        yield told
        return
    told["weights"] = sum(tensor.nbytes for tensor in model.parameters())
    told["before"] = told["most"] = anonymous()
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield told
    finally:
        done.set()
        watcher.join()
        told["after"] = anonymous()


def anonymous() -> int:
    """Bytes of memory that no file backs, of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def forget(folder: Path) -> None:
    """Take the files out of the page cache; they are clean, so nothing holds them there."""
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def remember(folder: Path) -> None:
    """Have all of them there."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(2**22):
                pass


STATES = {"warm": remember, "cold": forget}


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each way and phase, how much faster than the default, and the memory beside it."""
    figures: dict[str, Any] = {}
    for cache in STATES:
        counted = [s for s in samples if s["cache"] == cache and counts(s)]
        for way in dict.fromkeys(taken["way"] for taken in counted):
            of_way = [taken["seconds"] for taken in counted if taken["way"] == way]
            figures[f"{way}, {cache}"] = {
                phase: round(statistics.median([one.get(phase, 0.0) for one in of_way]), 4)
                for phase in of_way[0]
            }
            figures[f"{way}, {cache}"]["samples"] = len(of_way)
            figures[f"{way}, {cache}"]["load_least"] = min(one["load"] for one in of_way)
            figures[f"{way}, {cache}"]["load_most"] = max(one["load"] for one in of_way)
        if default := figures.get(f"default, {cache}"):
            for name, one in figures.items():
                if name.endswith(f", {cache}"):
                    one["load_against_default"] = round(default["load"] / one["load"], 3)
    for taken in samples:
        if "memory" in taken:
            memory = taken["memory"]
            more = memory["most"] - memory["before"] - memory["weights"]
            figures.setdefault(f"{taken['way']}, warm", {})["bytes_beside_weights"] = more
    return figures


def shown(turns: list[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """The turns, with a bar on standard error."""
    return iter(track(turns, "measuring", console=Console(stderr=True)))


if __name__ == "__main__":
    sys.exit(main())
