"""Fuzzes the parsers of checkpoints: coverage-guided (atheris, libFuzzer), structure-aware.

Each target is a process that gives a parser one file after another in memory, keeps those that
reach something new, and ends with the first that breaks a promise: another error than those for
people, more than a second, a tensor outside the file, another answer than the format's library.
Such a file is copied to ``tests/bake/checkpoint/corpus/found``, where a test reads it for good.
"""

import argparse
import hashlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from serve.plan import versions
from serve.settings import REPOSITORY

CORPUS = REPOSITORY / "tests" / "bake" / "checkpoint" / "corpus"
FOUND = CORPUS / "found"
# What was reached before, so that a campaign can be continued.
KEPT = REPOSITORY / ".cache" / "fuzz"
PLAIN = ("safetensors", "gguf", "zip", "pickle", "pth", "npz", "gguf-tokenizer")
TARGETS = (*PLAIN, *(f"structured-{name}" for name in PLAIN[:-1]))
# A second of a process's own time is the limit (fuzz_target); this is for what never ends.
LIMITS = ("-timeout=300", "-rss_limit_mb=1024", "-malloc_limit_mb=256")
LONGEST = 4096
# Many instructions say no more than a few, and each is compared with all that there are.
SHORTER = {"pickle": 768, "safetensors": 1536}
RUNS = 100_000
# libFuzzer's exit status of a campaign that was stopped, which counts as far as it went.
INTERRUPTED = 72
# Mutations of mutations before a file is tried: ours are Python's, and take longer than a file.
DEPTH = "-mutate_depth=2"
# Words that no mutation would find.
WORDS = {
    "safetensors": [
        *("__metadata__", '"dtype":', '"shape":[', '"data_offsets":[', '{"a":', "[0,0]", "},"),
        *("BF16", "F32", "F64", "F4", "F6_E2M3", "F8_E4M3", "BOOL", "C64", "I64", "U8", "\\u0061"),
        *("18446744073709551615", "9223372036854775807", "-1", "1e9", "NaN", "true", "null"),
    ],
    "gguf": [
        *("GGUF", "general.alignment", "general.architecture", "llama.", "tokenizer.ggml."),
        *("tokens", "merges", "scores", "token_type", "blk.0.", "gpt2", "llama-bpe"),
    ],
    "zip": ["PK\x01\x02", "PK\x03\x04", "PK\x05\x06", "PK\x06\x06", "PK\x06\x07", "PK\x07\x08"],
    "pickle": [
        *("ctorch\nFloatStorage\n", "ctorch._utils\n_rebuild_tensor_v2\n", "storage", "cpu"),
        *("ccollections\nOrderedDict\n", "c_codecs\nencode\n", "ctorch\nSize\n", "cos\nsystem\n"),
        *("ctorch._utils\n_rebuild_parameter\n", "ctorch._tensor\n_rebuild_from_type_v2\n"),
        *("ctorch._utils\n_rebuild_tensor_v3\n", "ctorch\nbfloat16\n", "\x80\x02", "\x8a\x01"),
        *("state_dict", "latin1", "\x93", "\x94", "\x85R", "\x86R", "(", "t", "}(", "u", "e", "Q"),
    ],
    "npz": ["\x93NUMPY\x01\x00", "'descr': '<f4'", "'fortran_order': True", "'shape': (", "|V2"],
}
USES = {"pth": ("pickle", "zip"), "npz": ("npz", "zip"), "gguf-tokenizer": ("gguf",)}
EDGES = (2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
FINAL = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
EXAMPLES = """examples:
  python -m scripts.fuzz --runs 100000
  python -m scripts.fuzz --seconds 600 --only gguf --only pth --jobs 2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all held, 1 when something was found, 2 usage."""
    parsed = parser().parse_args(arguments)
    names = parsed.only or list(TARGETS)
    # libFuzzer's word for no end.
    runs = parsed.runs or (-1 if parsed.seconds else RUNS)
    made, machine = now(), this_machine()
    with ThreadPoolExecutor(parsed.jobs) as pool:
        samples = list(pool.map(lambda name: campaign(name, runs, parsed.seconds), names))
    record = Record(
        kind="fuzz",
        made=made,
        command=["python", "-m", "scripts.fuzz", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions() | {"atheris": version("atheris")}},
        parameters={"runs": runs, "seconds": parsed.seconds, "sources": sources()},
        summary=summary(samples),
        samples=samples,
    )
    if parsed.json:
        print(record.model_dump_json(indent=1))
    else:
        Console().print(table(samples))
    if not parsed.no_record:
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 1 if record.summary["findings"] else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.fuzz",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--runs", type=int, help=f"files for each target ({RUNS}, or by time)")
    top.add_argument("--seconds", type=int, default=0, help="most for each target (no limit)")
    top.add_argument("--only", action="append", choices=TARGETS, help="a target; may be repeated")
    top.add_argument("--jobs", type=int, default=1, help="targets at once (1)")
    top.add_argument("--json", action="store_true", help="the record, not a table")
    top.add_argument("--no-record", action="store_true", help="keep no record")
    return top


def campaign(name: str, runs: int, seconds: int) -> dict[str, Any]:
    """One target until ``runs`` or ``seconds`` are over, or something is found."""
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="preheat-fuzz-") as folder:
        room = Path(folder)
        counts, found, words = room / "counts", room / "found", room / "words"
        counts.write_bytes(bytes(16))
        found.mkdir()
        words.write_text(dictionary(name), encoding="utf-8")
        argv = [
            *(sys.executable, "-m", "scripts.fuzz_target", name, str(counts), str(found)),
            *(
                *LIMITS,
                DEPTH,
                f"-max_len={SHORTER.get(name, LONGEST)}",
                f"-runs={runs}",
                f"-max_total_time={seconds}",
                "-print_final_stats=1",
            ),
            *(f"-artifact_prefix={room}/", f"-dict={words}", str(kept), str(seeds(name, room))),
        ]
        began = time.perf_counter()
        done = subprocess.run(
            argv, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", check=False
        )
        took = time.perf_counter() - began
        executions, accepted = struct.unpack("<2Q", counts.read_bytes())
        found_here = keep(name, room, found)
    if done.returncode not in (0, INTERRUPTED) and not found_here:
        print(done.stderr[-4000:], file=sys.stderr)
        found_here = [f"exit status {done.returncode}"]
    elif found_here:
        print(done.stderr[-4000:], file=sys.stderr)
    return {
        "target": name,
        "executions": executions,
        "accepted": accepted,
        "seconds": round(took, 1),
        **reached(done.stderr),
        "findings": found_here,
    }


def reached(log: str) -> dict[str, int]:
    """What libFuzzer said last."""
    status = STATUS.findall(log)
    coverage, features, corpus = map(int, status[-1]) if status else (0, 0, 0)
    final = {key: int(value) for key, value in FINAL.findall(log)}
    return {
        "coverage": coverage,
        "features": features,
        "corpus": corpus,
        "executions_per_second": final.get("average_exec_per_sec", 0),
        "peak_rss_mb": final.get("peak_rss_mb", 0),
    }


def dictionary(name: str) -> str:
    """In libFuzzer's form: quoted, bytes as escapes."""
    name = name.removeprefix("structured-")
    words = [word.encode("latin-1") for of in USES.get(name, (name,)) for word in WORDS[of]]
    words += [edge.to_bytes(8, "little") for edge in EDGES]
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


def seeds(name: str, room: Path) -> Path:
    """Sound files, and what was found before."""
    # Tests are not typed.
    handmade: Any = import_module("tests.bake.checkpoint.handmade")
    folder = room / "seeds"
    folder.mkdir()
    if name in PLAIN:
        for title, raw in handmade.sound()[name].items():
            (folder / title).write_bytes(raw)
        for path in sorted(CORPUS.glob(f"*/{name}-*")):
            (folder / path.name).write_bytes(path.read_bytes())
    else:
        # Of fewer bytes than that hypothesis makes no file.
        for number in range(8):
            (folder / str(number)).write_bytes(random.Random(number).randbytes(1024))  # noqa: S311
    return folder


def keep(name: str, room: Path, found: Path) -> list[str]:
    """Copy what broke a promise to the corpus; returns the files' names."""
    whole = sorted(found.iterdir())
    # Without one, the process was ended from outside: too slow, or too large.
    broken = whole or sorted(room.glob("*-*[0-9a-f]"))
    kept = []
    for path in broken:
        raw = path.read_bytes()
        FOUND.mkdir(parents=True, exist_ok=True)
        into = FOUND / f"{name.removeprefix('structured-') if whole else name}-{digest(raw)}"
        into.write_bytes(raw)
        kept.append(str(into.relative_to(REPOSITORY)))
    return kept


def digest(raw: bytes) -> str:
    """Eight letters."""
    return hashlib.sha256(raw).hexdigest()[:8]


def sources() -> str:
    """Which state of the parsers it was."""
    paths = [REPOSITORY / "blob" / "header.py", *sorted(REPOSITORY.glob("bake/checkpoint/**/*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """In all."""
    return {
        "executions": sum(one["executions"] for one in samples),
        "accepted": sum(one["accepted"] for one in samples),
        "seconds": round(sum(one["seconds"] for one in samples), 1),
        "findings": sum(len(one["findings"]) for one in samples),
        "executions_by_target": {one["target"]: one["executions"] for one in samples},
    }


def table(samples: Sequence[dict[str, Any]]) -> Table:
    """One row for each target."""
    made = Table(title="fuzzing")
    columns = ("target", "executions", "accepted", "seconds", "coverage", "corpus", "findings")
    for column in columns:
        made.add_column(column, justify="left" if column == "target" else "right")
    for one in samples:
        row = {**one, "findings": len(one["findings"])}
        made.add_row(*(f"{row[c]:,}" if c != "target" else row[c] for c in columns))
    return made


if __name__ == "__main__":
    sys.exit(main())
