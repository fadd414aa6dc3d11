"""Measures the codecs: how fast each stores and reads, how much it loses, and against whom.

Every kind of sample is taken in turn, round after round, so that a slow minute of the machine is
everybody's. A sample while others burn CPU is marked, kept out of the figures, and taken again.
Before anything is timed, bytes are compared: with ggml's, with compressed-tensors', and what is
read with the plain reference. Rates are in millions of values (Melem/s) of one matrix; zipnn and
raw take it as BF16.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from blob.codecs import Bfloats, ByteCodec, Floats, RowCodec, bfloat16
from blob.names import CODECS
from blob.registry import codec_of
from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.codec_peers import GGML, compressed_decode, ggml_encode, integers_of
from scripts.options import add_sampling, sample_seconds
from scripts.starts import DEADLINE_SECONDS, NotMeasured, cpu_times
from serve.plan import versions
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny" / "model.safetensors"
PARAMS: dict[str, dict[str, int]] = {"int4": {"group": 32}, "int5": {"group": 128}}
PEERS = ("libggml-python", "compressed-tensors", "zipnn", "numba", "llvmlite")
# What is read at once, as BF16: it stays in a core's own cache, as it does when a blob is loaded.
PIECE_BYTES = 2**20
# Columns whose every codec's blocks are a divisor of.
COLUMNS = 4096
TYPES = {"I32": np.int32, "BF16": np.uint16, "U8": np.uint8, "I64": np.int64}
# A tick of /proc/stat is 10 ms: in a sample of 0.2 s, two ticks of two cores are 5 %.
SAMPLE_SECONDS = 0.2
FOREIGN = 0.05
OURS = "preheat"
EXAMPLES = """examples:
  python -m scripts.measure_codecs
  python -m scripts.measure_codecs --rounds 11 --only int5 --only q6_k
  python -m scripts.measure_codecs --quick --json --no-record
"""


class Different(RuntimeError):
    """Bytes are not what they must be, so nothing is measured."""


@dataclass(frozen=True)
class Case:
    """One kind of sample. ``work(part, of)`` does one of so many parts, once."""

    task: str
    codec: str
    by: str
    values: int
    work: Callable[[int, int], object]
    # It threads by itself: ``work(0, threads)`` does everything.
    alone: bool = False

    @property
    def key(self) -> str:
        """Its name in a record."""
        return f"{self.task} {self.codec}, {self.by}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was measured, 1 when bytes differ or others never rest, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    rows = 64 if parsed.quick else parsed.rows
    matrix = normal(rows)
    names = parsed.only or list(CODECS)
    try:
        cases = [case for name in names for case in cases_of(name, matrix)]
        error = losses(names, matrix)
        samples = list(measured(cases, parsed))
    except (Different, NotMeasured) as stop:
        print(f"not measured: {stop}", file=sys.stderr)
        return 1
    record = Record(
        kind="codecs",
        made=made,
        command=["python", "-m", "scripts.measure_codecs", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions() | {peer: version(peer) for peer in PEERS}},
        parameters={"rows": rows, "columns": COLUMNS, "rounds": parsed.rounds, "codecs": names}
        | {
            "sample_seconds": sample_seconds(parsed),
            "foreign_share": FOREIGN,
            "params": PARAMS,
        },
        summary={"rates": rates(samples), "losses": error},
        samples=samples,
    )
    print(json.dumps(record.summary, indent=1)) if parsed.json else show(record.summary)
    if parsed.record:
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_codecs",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # As large as a linear of a model of 8 B is: on matrices that fit in a cache, what is written
    # for whole tensors is several times quicker, and nobody has such.
    top.add_argument("--rows", type=int, default=4096, help=f"of {COLUMNS} columns (4096)")
    top.add_argument("--only", action="append", choices=list(CODECS), help="these codecs (all)")
    add_sampling(top, 7, "a small matrix", seconds=SAMPLE_SECONDS)
    return top


def normal(rows: int) -> Floats:
    """Normal weights, each of them a BF16 number."""
    values = np.random.default_rng(0).standard_normal((rows, COLUMNS)) * 0.02
    return bfloat16.to_float32(bfloat16.from_float32(values.astype(np.float32)))


def cases_of(name: str, matrix: Floats) -> list[Case]:
    """What is measured of one codec.

    :raises Different: its bytes are not those of whom it follows, or of its reference.
    """
    codec = codec_of(name, PARAMS.get(name, {}), "here")
    if isinstance(codec, RowCodec):
        return row_cases(codec, matrix)
    return byte_cases(codec, bfloat16.from_float32(matrix))


def empty(codec: RowCodec, rows: int, cols: int) -> dict[str, NDArray[Any]]:
    """Parts to encode into."""
    return {
        key: np.zeros(part.shape, TYPES[part.dtype])
        for key, part in codec.parts(rows, cols).items()
    }


def row_cases(codec: RowCodec, matrix: Floats) -> list[Case]:
    """Of a codec of rows, and of whom it is compared with."""
    rows, cols = matrix.shape
    parts = empty(codec, rows, cols)
    whole: Bfloats = np.empty(matrix.shape, np.uint16)
    codec.encode(matrix, parts)
    codec.decode(parts, whole)
    few = {key: part[:16] for key, part in parts.items()}
    same("its reference", few, codec.encode_reference(matrix[:16]))
    expected = bfloat16.from_float32_reference(codec.decode_reference(few))
    same("its reference", {"read": whole[:16]}, {"read": expected})

    def encode(part: int, of: int) -> None:
        own = some(rows, part, of)
        codec.encode(matrix[own], {key: stored[own] for key, stored in parts.items()})

    def decode(part: int, of: int) -> None:
        step = max(1, PIECE_BYTES // 2 // cols)
        scratch = whole[some(rows, part, of)][:step]
        for begin in range(rows * part // of, rows * (part + 1) // of, step):
            piece = slice(begin, min(begin + step, rows * (part + 1) // of))
            read = scratch[: piece.stop - piece.start]
            codec.decode({key: stored[piece] for key, stored in parts.items()}, read)

    def decode_whole(part: int, of: int) -> None:
        own = some(rows, part, of)
        codec.decode({key: stored[own] for key, stored in parts.items()}, whole[own])

    size, name = matrix.size, codec.name
    cases = [Case("encode", name, OURS, size, encode), Case("decode", name, OURS, size, decode)]
    if name in GGML:
        cases.append(Case("encode", name, "ggml", size, ggml_work(name, matrix, parts)))
    if name in PARAMS:
        bits = int(name.removeprefix("int"))
        theirs = compressed_decode(
            integers_of(parts, bits), parts["scale"], PARAMS[name]["group"], bits
        )
        same("compressed-tensors'", {"read": whole}, {"read": theirs(1)})
        cases.append(Case("decode at once", name, OURS, size, decode_whole))
        peer = "compressed-tensors"
        cases.append(Case("decode at once", name, peer, size, lambda _, of: theirs(of), alone=True))
    return cases


def ggml_work(
    name: str, matrix: Floats, parts: dict[str, NDArray[Any]]
) -> Callable[[int, int], None]:
    """ggml's encoder on the same matrix.

    :raises Different: its bytes are others.
    """
    out = np.zeros_like(parts["blocks"])
    ggml_encode(name, matrix, out)
    same("ggml's", {"blocks": parts["blocks"]}, {"blocks": out})

    def encode(part: int, of: int) -> None:
        own = some(len(matrix), part, of)
        ggml_encode(name, matrix[own], out[own])

    return encode


def byte_cases(codec: ByteCodec, weights: Bfloats) -> list[Case]:
    """Of a codec of bytes."""
    raw = weights.reshape(-1).view(np.uint8)
    chunks = -(-raw.size // codec.chunk)
    parts = codec.encode(raw.data)
    back = np.empty(raw.size, np.uint8)

    def piece(index: int) -> slice:
        return slice(index * codec.chunk, min((index + 1) * codec.chunk, raw.size))

    for index in range(chunks):
        codec.decode(parts, index, back[piece(index)].data)
    same("what was stored", {"bytes": back}, {"bytes": raw})

    def encode(part: int, of: int) -> None:
        own = some(chunks, part, of)
        codec.encode(raw[piece(own.start).start : piece(own.stop - 1).stop].data)

    def decode(part: int, of: int) -> None:
        own = some(chunks, part, of)
        for index in range(own.start, own.stop):
            size = piece(index).stop - piece(index).start
            codec.decode(parts, index, back[piece(own.start)][:size].data)

    cases = [Case("decode", codec.name, OURS, weights.size, decode)]
    if codec.name != "raw":
        cases.append(Case("encode", codec.name, OURS, weights.size, encode))
    return cases


def some(count: int, part: int, of: int) -> slice:
    """The ``part``-th of ``of`` about equal parts of ``count`` things."""
    return slice(count * part // of, count * (part + 1) // of)


def same(whose: str, ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> None:
    """:raises Different: not the same bytes."""
    for key, expected in theirs.items():
        if ours[key].tobytes() != expected.tobytes():
            raise Different(f"{key} are not {whose} bytes")


def measured(cases: Sequence[Case], parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Samples, those too that were taken beside others' work.

    :raises NotMeasured: the others never rest.
    """
    threads = sorted({1, 2, this_machine().cores})
    long_enough, deadline = (
        sample_seconds(parsed),
        time.monotonic() + DEADLINE_SECONDS,
    )
    keep = parsed.busy or parsed.quick
    turns = [(case, count) for case in cases for count in threads]
    with ThreadPoolExecutor(max(threads)) as pool:
        # The first time compiles, or fetches from disk what was compiled.
        times = {
            (case.key, count): min(once(pool, case, count, 1) for _ in range(2))
            for case, count in turns
        }
        for _ in track(range(parsed.rounds), "measuring", console=Console(stderr=True)):
            for case, count in turns:
                repeats = max(1, round(long_enough / times[case.key, count]))
                while True:
                    taken = sample(pool, case, count, repeats)
                    taken["kept"] = keep or taken["foreign"] <= FOREIGN
                    yield taken
                    if taken["kept"]:
                        break
                    if time.monotonic() > deadline:
                        raise NotMeasured(f"others burn {taken['foreign']:.0%} of the cores")
                    time.sleep(1)


def sample(pool: ThreadPoolExecutor, case: Case, threads: int, repeats: int) -> dict[str, Any]:
    """One sample, and the share of all cores that others had meanwhile."""
    before, own = cpu_times(), own_ticks()
    seconds = once(pool, case, threads, repeats)
    passed = [now - was for was, now in zip(before, cpu_times(), strict=True)]
    # guest time (the last two) stands in user and nice already
    busy = sum(passed[:3]) + sum(passed[5:8])
    everything = max(1, busy + passed[3] + passed[4])
    return {
        "case": case.key,
        "threads": threads,
        "repeats": repeats,
        "seconds": round(seconds, 5),
        "melem_per_second": round(case.values * repeats / seconds / 1e6, 1),
        "foreign": round(max(0.0, busy - (own_ticks() - own)) / everything, 3),
    }


def once(pool: ThreadPoolExecutor, case: Case, threads: int, repeats: int) -> float:
    """Seconds for ``repeats`` times all of it; each thread repeats its own part."""

    def repeated(part: int, of: int) -> None:
        for _ in range(repeats):
            case.work(part, of)

    began = time.perf_counter()
    if case.alone or threads == 1:
        repeated(0, threads)
    else:
        for each in [pool.submit(repeated, part, threads) for part in range(threads)]:
            each.result()
    return time.perf_counter() - began


def own_ticks() -> float:
    """CPU time of this process, user and system, in the ticks of /proc/stat."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * os.sysconf("SC_CLK_TCK")


def losses(names: Sequence[str], matrix: Floats) -> dict[str, dict[str, float]]:
    """Of each codec, bytes stored over bytes of BF16, and the relative error of what is read."""
    found: dict[str, dict[str, float]] = {}
    tiny = list(linears(TINY))
    for name in names:
        codec = codec_of(name, PARAMS.get(name, {}), "here")
        if isinstance(codec, RowCodec):
            fitting = [one for one in tiny if one.shape[1] % codec.block == 0]
            found[name] = {
                "stored_normal": stored_share(codec, matrix.shape),
                "error_normal": round(relative_error(codec, [matrix]), 5),
                "error_tiny": round(relative_error(codec, fitting), 5) if fitting else -1,
                "tiny_tensors": len(fitting),
            }
        else:
            found[name] = {
                "stored_normal": round(kept_share(codec, [matrix]), 4),
                "stored_tiny": round(kept_share(codec, tiny), 4),
            }
    return found


def linears(path: Path) -> Iterator[Floats]:
    """The matrices of a model in BF16, as float32."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name in sorted(header.keys() - {"__metadata__"}):
            entry = header[name]
            if entry["dtype"] == "BF16" and len(entry["shape"]) == 2:
                begin, end = entry["data_offsets"]
                file.seek(8 + size + begin)
                bits = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint16)
                yield bfloat16.to_float32(bits.reshape(entry["shape"]))


def relative_error(codec: RowCodec, matrices: Sequence[Floats]) -> float:
    """Root of the squared error of all numbers over their squares."""
    error = total = 0.0
    for matrix in matrices:
        parts = empty(codec, *matrix.shape)
        read: Bfloats = np.empty(matrix.shape, np.uint16)
        codec.encode(matrix, parts)
        codec.decode(parts, read)
        off = bfloat16.to_float32(read).astype(np.float64) - matrix
        error += float(np.square(off).sum())
        total += float(np.square(matrix, dtype=np.float64).sum())
    return float(np.sqrt(error / total))


def stored_share(codec: RowCodec, shape: tuple[int, ...]) -> float:
    """Bytes of the parts over those of BF16."""
    parts = empty(codec, *shape).values()
    return round(sum(part.nbytes for part in parts) / (2 * shape[0] * shape[1]), 4)


def kept_share(codec: ByteCodec, matrices: Sequence[Floats]) -> float:
    """The same of a codec of bytes."""
    stored = total = 0
    for matrix in matrices:
        raw = bfloat16.from_float32(matrix).reshape(-1).view(np.uint8)
        stored += sum(part.nbytes for part in codec.encode(raw.data).values())
        total += raw.nbytes
    return stored / total


def rates(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each case, the median, least and most Melem/s by threads; and what that is of a peer's."""
    groups: dict[str, dict[int, list[float]]] = {}
    for taken in samples:
        if taken["kept"]:
            by = groups.setdefault(taken["case"], {}).setdefault(taken["threads"], [])
            by.append(taken["melem_per_second"])
    found: dict[str, dict[str, Any]] = {}
    for key, counts in groups.items():
        found[key] = {
            str(count): {"median": statistics.median(own), "min": min(own), "max": max(own)}
            for count, own in counts.items()
        }
        found[key]["two_over_one"] = ratio(found[key], "2", found[key], "1")
    for key, ours in found.items():
        what, whose = key.rsplit(", ", 1)
        for other in (f"{what}, {peer}" for peer in ("ggml", "compressed-tensors")):
            if whose == OURS and other in found:
                ours["over_peer"] = {n: ratio(ours, n, found[other], n) for n in ("1", "2")}
    return found


def ratio(over: dict[str, Any], one: str, under: dict[str, Any], other: str) -> float:
    """Of two medians."""
    return round(float(over[one]["median"]) / float(under[other]["median"]), 2)


def show(summary: dict[str, Any]) -> None:
    """The figures as two tables on standard output."""
    speed = Table("Melem/s", "by", "1 thread", "2 threads", "2 ÷ 1", "over the peer, 1 and 2")
    for key, own in summary["rates"].items():
        what, by = key.rsplit(", ", 1)
        over = " ".join(f"{each}×" for each in own.get("over_peer", {}).values())
        medians = (f"{own[count]['median']:.0f}" for count in ("1", "2"))
        speed.add_row(what, by, *medians, str(own["two_over_one"]), over)
    loss = Table("codec", "stored ÷ BF16", "error, normal", "error, weights/tiny")
    for name, own in summary["losses"].items():
        shares = str(own["stored_normal"])
        if "stored_tiny" in own:
            shares += f" (tiny {own['stored_tiny']})"
        errors = (own.get("error_normal", 0.0), own.get("error_tiny", 0.0))
        loss.add_row(name, shares, *("none fits" if e < 0 else f"{e:.2%}" for e in errors))
    console = Console()
    console.print(speed)
    console.print(loss)


if __name__ == "__main__":
    sys.exit(main())
