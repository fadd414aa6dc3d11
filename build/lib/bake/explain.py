"""Why a compile cache that was there was not used: what differs between two keys, in words.

A side of the comparison is a folder: a baked root, a folder of records that
``serve/plugin/factors.py`` left, or a cache root in which vLLM left ``cache_key_factors.json``
(environment by name, all else as hashes). ``explain`` is pure; ``read`` is its thin edge.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bake.errors import BakeError
from serve import identity
from serve.errors import ServeError
from serve.identity import Accepted, Identity

Record = Mapping[str, Any]
Factors = dict[tuple[str, str], Any]

VLLMS_OWN = "cache_key_factors.json"
ENVIRONMENT, SOURCES, HASHES = "environment", "source files", "hashes"
# Of an identity, only what vLLM's key does not hold: all else is told by the factors.
BESIDE_KEY = re.compile(r"^(CPU|device|variant|target)")
# How a look-up ends that ends the engine.
STOPPED = ("missing", "refused")
WIDTH = 100
ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """One factor that is not the same on both sides, and the trap it is known for."""

    group: str
    factor: str
    a: str
    b: str
    trap: str = ""
    graphs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """``dangers`` are keys that agree although they must not; ``notes`` cause no miss."""

    differences: tuple[Difference, ...] = ()
    dangers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether a cache of the one serves the other."""
        return not self.differences and not self.dangers


@dataclass(frozen=True)
class Side:
    """What is known of one environment; an identity only if it is a baked root."""

    name: str
    records: Sequence[Record]
    identity: Identity | None = None


@dataclass(frozen=True)
class Trap:
    """What is known to go wrong with factors of ``group`` whose name fits ``factor``."""

    group: str
    factor: str
    sentence: str
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(self.factor))


# The first that fits is told.
TRAPS = (
    Trap(
        "model_config",
        r"^model$|_name_or_path$",
        "vLLM hashes the model's path as it is spelled: serve it from the very path it was baked "
        "with",
    ),
    Trap(
        ENVIRONMENT,
        r"PROCESS_NAME_PREFIX|_HOST$|_PORT$|_IP$|_PORTS$|SIDE_CHANNEL|HOSTNAME",
        "differs from pod to pod, and vLLM hashes it: set it alike everywhere, or nowhere",
    ),
    Trap(
        ENVIRONMENT,
        r"PLUGINS|CONFIGURE_LOGGING|TIMEOUT|LOG",
        "changes no compiled code, and vLLM hashes it all the same: fix it before the bake",
    ),
    Trap(
        ENVIRONMENT,
        r"_(DIR|PATH|ROOT|FOLDER|CACHE|HOME)$",
        "a place, often derived from HOME or XDG_*, and vLLM hashes it: keep those alike",
    ),
    Trap(
        ENVIRONMENT,
        r"",
        "vLLM hashes every variable that it declares, set or not, less a short list",
    ),
    Trap("scheduler_config", r"", "both limits of a step are in the key: they size static buffers"),
    Trap(
        "compilation_config",
        r"cudagraph|compile_sizes|compile_ranges",
        "the sizes that are captured or compiled are in the key, in full",
    ),
    Trap(
        SOURCES,
        r"",
        "vLLM compares the text of every file that was traced: this one was edited, or is of "
        "another release",
    ),
    Trap("code", r"^line$", "the line at which forward begins is in the key: a patch moved it"),
    Trap("code", r"", "another model class, so another graph"),
    Trap(
        "inductor system",
        r"name$|hash$",
        "made from the GPU's name: only an allow-listed sibling of one capability can be presented "
        "under another (PREHEAT_PRESENT_AS)",
    ),
    Trap("inductor system", r"", "CUDA and Triton are in the key with their releases"),
    Trap("torch", r"", "a digest over torch's own source files: another release, or edited files"),
    Trap("versions", r"", "artifacts are pickles of one release: bake again with what serves"),
    Trap(
        HASHES,
        r"",
        "only this hash was recorded: start with PREHEAT_RECORD_FACTORS=<folder> to see inside",
    ),
    Trap("graphs", r"", "another model, or one with and one without drafts"),
)


def explain(a: Side, b: Side) -> Explanation:
    """What differs between two environments, group by group."""
    left, right = by_graph(a.records), by_graph(b.records)
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for graph in sorted(left.keys() & right.keys()):
        for key in _compared(left[graph], right[graph]):
            found.setdefault(key, []).append(graph)
    differences = [
        Difference(group, name, was, now, trap(group, name), tuple(graphs))
        for (group, name, was, now), graphs in found.items()
    ]
    for graph in sorted(left.keys() ^ right.keys() if _whole(left) and _whole(right) else ()):
        sides = ("recorded", "not recorded") if graph in left else ("not recorded", "recorded")
        differences.append(Difference("graphs", graph, *sides, trap("graphs", graph)))
    differences += _of_identity(a.identity, b.identity)
    return Explanation(tuple(differences), _dangers(left, right), _notes(left, right))


def by_graph(records: Sequence[Record]) -> dict[str, Record]:
    """Records by graph; rank 0 stands for all ranks, whose keys are the same."""
    return {record.get("graph", "?"): record for record in reversed(list(records))}


def _whole(side: Mapping[str, Record]) -> bool:
    """Whether every graph was looked up: an engine that must load stops at the first miss."""
    return not any(record.get("outcome") in STOPPED for record in side.values())


def _compared(a: Record, b: Record) -> Iterator[tuple[str, str, str, str]]:
    left, right = flatten(a), flatten(b)
    if ("parts" in a.get("config", {})) != ("parts" in b.get("config", {})):
        # One of the two is vLLM's own record, which holds less: compare what both hold.
        groups = {group for group, _ in left} & {group for group, _ in right}
        left = {key: value for key, value in left.items() if key[0] in groups}
        right = {key: value for key, value in right.items() if key[0] in groups}
    if not (a.get("sources") and b.get("sources")):
        # A graph that was not found was not traced either.
        left, right = ({k: v for k, v in x.items() if k[0] != SOURCES} for x in (left, right))
    keys = [*left, *(key for key in right if key not in left)]
    differ = [key for key in keys if left.get(key, ABSENT) != right.get(key, ABSENT)]
    told = [key for key in differ if key[0] != HASHES]
    # A hash says nothing that its factors have not said.
    for group, name in told or differ:
        was, now = shown(left.get((group, name), ABSENT), right.get((group, name), ABSENT))
        yield group, name, was, now


def flatten(record: Record) -> Factors:
    """Every factor of a record by group and name; structures by dotted name."""
    config, inductor = record.get("config", {}), record.get("inductor", {})
    groups: dict[str, Any] = {
        ENVIRONMENT: record.get("env", {}).get("factors", {}),
        **{name: part["factors"] for name, part in config.get("parts", {}).items()},
        "inductor system": inductor.get("system", {}),
        "torch": {"torch_key": inductor["torch_key"]} if "torch_key" in inductor else {},
        "inductor config": inductor.get("inductor_config", {}),
        "functorch config": inductor.get("functorch_config", {}),
        "code": {k: v for k, v in record.get("code", {}).items() if k != "hash"},
        SOURCES: {k: v["sha256"] for k, v in record.get("sources", {}).items()},
        "versions": record.get("beside", {}).get("versions", {}),
        HASHES: hashes(record),
    }
    return {
        (group, name): value
        for group, factors in groups.items()
        for name, value in leaves(factors, dotted=group not in (SOURCES, ENVIRONMENT))
    }


def hashes(record: Record) -> dict[str, Any]:
    """The digests of a record: of the whole, of its groups, of each configuration."""
    config = record.get("config", {})
    found = {
        "aot": record.get("hash"),
        "env": record.get("env", {}).get("hash"),
        "config": config.get("hash"),
        "code": record.get("code", {}).get("hash"),
        "compiler": record.get("compiler", {}).get("hash"),
        **{name: part.get("hash") for name, part in config.get("parts", {}).items()},
    }
    return {name: digest for name, digest in found.items() if digest}


def leaves(value: Any, name: str = "", *, dotted: bool = True) -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` → ``("a.b", 1)``; JSON in a string (a model's own config) is opened."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            yield name, value
            return
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            below = f"{name}.{key}" if name else str(key)
            if dotted:
                yield from leaves(item, below)
            else:
                yield below, item
    elif name:
        yield name, value


def trap(group: str, factor: str) -> str:
    """The known trap of a factor; empty when none is known."""
    known = (t.sentence for t in TRAPS if t.group == group and t.pattern.search(factor))
    return next(known, "")


def _of_identity(a: Identity | None, b: Identity | None) -> list[Difference]:
    """What no key of vLLM's holds: CPU instructions, devices, the variant's levers."""
    if a is None or b is None or isinstance(answer := identity.match(a, b), Accepted):
        return []
    return [
        Difference(
            "identity, not in vLLM's key", reason.factor, reason.baked, reason.here, reason.why
        )
        for reason in answer.reasons
        if BESIDE_KEY.match(reason.factor)
    ]


def _dangers(left: Mapping[str, Record], right: Mapping[str, Record]) -> tuple[str, ...]:
    """Equal keys of graphs that are not the same: a hit that would be wrong."""
    found = {}
    for graph in sorted(left.keys() & right.keys()):
        was, now = (drafted(side[graph]) for side in (left, right))
        if was != now:
            same = left[graph].get("hash") == right[graph].get("hash")
            key = "the same key for both" if same else "which is not in the key"
            found[graph] = f"num_speculative_tokens is {was} in A and {now} in B, {key}"
    advice = (
        "vLLM would load the other's graph and crash or draft wrongly (vllm#53366): one root each"
    )
    return tuple(f"{graph}: {what}; {advice}" for graph, what in found.items())


def drafted(record: Record) -> Any:
    """K, as recorded; None when nothing is drafted or it was not recorded."""
    return record.get("beside", {}).get("num_speculative_tokens")


def _notes(left: Mapping[str, Record], right: Mapping[str, Record]) -> tuple[str, ...]:
    notes = {}
    for graph in sorted(left.keys() & right.keys()):
        was, now = (side[graph].get("beside", {}).get("places", {}) for side in (left, right))
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                notes[name] = (
                    f"{name} differs ({was.get(name)} and {now.get(name)}); it is in no key, but "
                    "decides where caches are looked for"
                )
    return tuple(notes.values())


def shown(a: Any, b: Any) -> tuple[str, str]:
    """Both values, short enough to read, from just before where they part."""
    texts = [
        "nothing" if v is ABSENT else v if isinstance(v, str) else json.dumps(v) for v in (a, b)
    ]
    texts = [text or "''" for text in texts]
    if max(map(len, texts)) <= WIDTH:
        return texts[0], texts[1]
    parted = next(
        (i for i, (x, y) in enumerate(zip(*texts, strict=False)) if x != y), min(map(len, texts))
    )
    start = max(0, parted - WIDTH // 4)
    cut = [text[start : start + WIDTH] for text in texts]
    lead = "…" if start else ""
    return lead + cut[0], lead + cut[1]


def render(found: Explanation) -> str:
    """The explanation for a person."""
    lines: list[str] = []
    for group in dict.fromkeys(item.group for item in found.differences):
        lines.append(f"{group}:")
        for item in (item for item in found.differences if item.group == group):
            where = f"  [{', '.join(item.graphs)}]" if item.graphs else ""
            lines += [f"  {item.factor}{where}", f"    A: {item.a}", f"    B: {item.b}"]
            lines += [f"    {item.trap}"] if item.trap else []
    lines += [f"DANGER {danger}" for danger in found.dangers]
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(["the keys are equal", *lines] if found.equal else lines)


def as_json(found: Explanation) -> str:
    """The explanation for programs."""
    return json.dumps({"equal": found.equal, **asdict(found)}, indent=2)


def read(folder: Path) -> Side:
    """What ``folder`` tells of an environment.

    :raises BakeError: there is no record in it, or one that cannot be read.
    """
    own = sorted((folder / "factors").glob("*.json")) or sorted(folder.glob("*.json"))
    records = [record for path in own if "graph" in (record := _object(path))]
    records = records or [_converted(path) for path in sorted(folder.rglob(VLLMS_OWN))]
    if not records:
        raise BakeError(
            f"{folder}: no records of a key: neither factors/*.json nor {VLLMS_OWN}",
            "start vLLM with PREHEAT_RECORD_FACTORS=<folder>, and name that folder",
        )
    path = folder / identity.FILE
    try:
        known = identity.parse(path.read_bytes()) if path.is_file() else None
    except (OSError, ServeError) as error:
        raise BakeError(f"{path}: cannot be read: {error}") from error
    return Side(str(folder), records, known)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BakeError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BakeError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _converted(path: Path) -> dict[str, Any]:
    """vLLM's own record in our form."""
    said = _object(path)
    return {
        "graph": path.parent.name,
        "env": {"factors": said.get("env", {})},
        "config": {"hash": said.get("config_hash")},
        "code": {"hash": said.get("code_hash")},
        "compiler": {"hash": said.get("compiler_hash")},
    }
