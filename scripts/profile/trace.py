"""A torch profiler's trace as trees of where time went, and tables made of them.

The format is Chrome's: complete events (``ph`` "X") with begin and length in microseconds, nested
by time within a thread. Work of a GPU lies on streams of its own and is told apart, by kernel.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = {"cpu_op", "user_annotation", "python_function", "cuda_runtime", "cuda_driver"}
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
SCOPE = "gpu_model_runner: "
FORWARD = SCOPE + "forward"
LAYER = "nn.Module: "


@dataclass
class Node:
    """Everything that ran at one place in the stack: microseconds, and how often."""

    name: str
    total: float = 0.0
    calls: int = 0
    children: dict[str, "Node"] = field(default_factory=dict)

    @property
    def own(self) -> float:
        """Time not in children."""
        return max(0.0, self.total - sum(child.total for child in self.children.values()))

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "Node"]]:
        """Every node below with the names above it, itself included."""
        here = (*path, self.name)
        yield here, self
        for child in self.children.values():
            yield from child.walk(here)


class BadTrace(ValueError):
    """No trace of a torch profiler."""


def read(path: Path) -> list[Mapping[str, Any]]:
    """The complete events of a trace, packed or not.

    :raises BadTrace: it is none.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        events = json.loads(data)["traceEvents"]
        return [event for event in events if event.get("ph") == "X" and "dur" in event]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTrace(f"{path}: not a torch profiler's trace ({error})") from error


def tree(events: Iterable[Mapping[str, Any]]) -> Node:
    """All host events, merged by their place in the stack, each thread's beside the others."""
    threads: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") in HOST:
            threads[event["pid"], event["tid"]].append(event)
    root = Node("all")
    for found in threads.values():
        _nest(root, found)
    root.total = sum(child.total for child in root.children.values())
    return root


def _nest(root: Node, events: list[Mapping[str, Any]]) -> None:
    stack: list[tuple[float, Node]] = [(float("inf"), root)]
    # Of two that begin together the longer is the outer one.
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        while stack[-1][0] <= event["ts"]:
            stack.pop()
        above = stack[-1][1]
        node = above.children.setdefault(event["name"], Node(event["name"]))
        node.total += event["dur"]
        node.calls += 1
        stack.append((event["ts"] + event["dur"], node))


def phases(root: Node) -> dict[str, float]:
    """Milliseconds of each phase of a step, by vLLM's own scopes, outermost ones only."""
    found: dict[str, float] = defaultdict(float)

    def visit(node: Node) -> None:
        if node.name.startswith(SCOPE):
            found[node.name.removeprefix(SCOPE)] += node.total / 1e3
            return
        for child in node.children.values():
            visit(child)

    visit(root)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def steps(events: Iterable[Mapping[str, Any]]) -> int:
    """How many times the model ran forward."""
    return sum(event["name"] == FORWARD and event.get("cat") in HOST for event in events)


def operators(root: Node) -> list[dict[str, Any]]:
    """Operators by their own milliseconds, most first."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for _, node in root.walk():
        found[node.name][0] += node.own / 1e3
        found[node.name][1] += node.calls
    rows = [{"name": n, "ms": ms, "calls": int(calls)} for n, (ms, calls) in found.items()]
    return sorted((row for row in rows if row["calls"]), key=lambda row: -row["ms"])


def kernels(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A device's kernels and copies by milliseconds, most first; empty where there is none."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        if event.get("cat") in DEVICE:
            found[event["name"]][0] += event["dur"] / 1e3
            found[event["name"]][1] += 1
    rows = [{"name": n, "ms": ms, "calls": int(calls)} for n, (ms, calls) in found.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def layers(root: Node) -> list[dict[str, Any]]:
    """Modules by milliseconds, children included; a compiled graph has none."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for _, node in root.walk():
        if node.name.startswith(LAYER):
            found[node.name.removeprefix(LAYER)][0] += node.total / 1e3
            found[node.name.removeprefix(LAYER)][1] += node.calls
    rows = [{"name": n, "ms": ms, "calls": int(calls)} for n, (ms, calls) in found.items()]
    return sorted(rows, key=lambda row: -row["ms"])
