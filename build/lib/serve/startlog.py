"""Reads an engine's log: which phase of the start ended, what was compiled, why it died.

Pure: lines and times are passed in. The patterns are vLLM 0.32's own wording; a wording that
changed shows up as a phase that is missing, never as a wrong number, because each pattern names
the phase that ends with its line, and the time since the last such line belongs to it.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# In the order a start goes through them.
PHASES = (
    "interpreter",
    "imports",
    "engine core",
    "worker",
    "model init",
    "weights",
    "compile",
    "warm-up",
    "graph capture",
    "kv cache",
    "front end",
    "first token",
)

ENDS = (
    # Each of these three processes imports, where it is not forked off a zygote.
    (re.compile(r"non-default args: "), "imports"),
    (re.compile(r"Initializing a V1 LLM engine "), "engine core"),
    (re.compile(r"Starting to load model "), "worker"),
    (re.compile(r"Initializing model took "), "model init"),
    (re.compile(r"Loading weights took |Model loading took "), "weights"),
    (re.compile(r"Warming up model for the compilation"), "weights"),
    (re.compile(r"saved AOT compiled function to |Directly load AOT compilation from "), "compile"),
    (re.compile(r"torch\.compile takes |Compiling a graph for .* takes "), "compile"),
    (re.compile(r"Initial profiling/warmup run took |Warming up done"), "warm-up"),
    (re.compile(r"Graph capturing finished "), "graph capture"),
    (re.compile(r"init engine \(.*\) took "), "kv cache"),
    (re.compile(r"Application startup complete"), "front end"),
)
COMPILED = re.compile(r"\[?(\w*)\]? ?saved AOT compiled function to (\S+)")
LOADED = re.compile(r"\[?(\w*)\]? ?Directly load AOT compilation from path (\S+)")
# What our loader says of itself, once for the model and once for its drafter, on each rank.
WEIGHTS = re.compile(r"preheat: weights loaded: (\{.*\})")
# Of each process that does not fork off one that said it.
PATCHED = re.compile(r"preheat: patch (\w+) applied: ")
REFUSED = re.compile(r"Compiling model again due to a load failure from (\S+), reason: (.*)")

# "(EngineCore pid=12) ERROR 11-21 03:55:30 [core.py:1] " in front of what is said.
PREFIX = re.compile(r"^(\(.*? pid=\d+\) )?((ERROR|WARNING|INFO|CRITICAL) \S+ \S+ \[[^\]]*\] ?)?")
HARMLESS = ("WARNING", "INFO")
CAUSE = re.compile(
    r"^(\w+\.)*\w*(Error|Exception|Interrupt|Killed)\b|error: |No such option|out of memory"
    # pydantic says what is wrong in the line after the one that names its exception.
    r"|^\s+(Value|Assertion) error, ",
    re.I,
)
# Raised by one process about the death of another: says that, not why.
CONSEQUENCE = re.compile(r"Engine core initialization failed|EngineDeadError|WorkerProc init")


@dataclass(frozen=True)
class Interval:
    """``seconds`` that one phase took; a phase can stand more than once (model, then drafter)."""

    phase: str
    seconds: float


class StartLog:
    """What one start has told so far. Times are seconds on any monotonic clock."""

    def __init__(self, started: float) -> None:
        self.intervals: list[Interval] = []
        self.compiled: list[str] = []
        self.loaded: list[str] = []
        self.refused: list[str] = []
        self.weights: list[dict[str, Any]] = []
        self.patches: set[str] = set()
        self._last = started

    def observe(self, line: str, at: float) -> None:
        """Take in one line that was read at ``at``."""
        for pattern, phase in ENDS:
            if pattern.search(line):
                self.end(phase, at)
                break
        if match := COMPILED.search(line):
            self.compiled.append(match[2])
        elif match := LOADED.search(line):
            self.loaded.append(match[2])
        elif match := REFUSED.search(line):
            self.refused.append(match[2])
        elif match := PATCHED.search(line):
            self.patches.add(match[1])
        elif match := WEIGHTS.search(line):
            with contextlib.suppress(ValueError):
                self.weights.append(json.loads(match[1]))

    def end(self, phase: str, at: float) -> None:
        """``phase`` ended at ``at``: the time since the last end belongs to it."""
        self.intervals.append(Interval(phase, at - self._last))
        self._last = at

    @property
    def current(self) -> str:
        """The phase that goes on now: the one after the last that ended."""
        if not self.intervals:
            return PHASES[0]
        done = PHASES.index(self.intervals[-1].phase)
        return PHASES[min(done + 1, len(PHASES) - 1)]

    def seconds(self) -> dict[str, float]:
        """Total per phase, in the order of ``PHASES``; phases not met are left out."""
        totals: dict[str, float] = {}
        for phase in PHASES:
            parts = [item.seconds for item in self.intervals if item.phase == phase]
            if parts:
                totals[phase] = round(sum(parts), 3)
        return totals


def causes(lines: Sequence[str], most: int = 6) -> list[str]:
    """The lines that say why an engine died, first cause first; its last words if none do."""
    said = list(_said(lines))
    named = [line for line in said if CAUSE.search(line)]
    roots = [line for line in named if not CONSEQUENCE.search(line)]
    chosen = list(dict.fromkeys(roots or named))
    return chosen[:most] or said[-most:]


def _said(lines: Sequence[str]) -> Iterator[str]:
    """Lines without vLLM's prefix; less warnings, and less what interpreters say of finalizers."""
    ignoring = False
    for line in lines:
        match = PREFIX.match(line)
        text = line[match.end() :].rstrip() if match else line.rstrip()
        if text.startswith("Exception ignored in"):
            ignoring = True
        elif ignoring:
            # The traceback is indented; the line after it names the exception and ends it.
            ignoring = text.startswith((" ", "Traceback"))
        elif text and not (match and match[3] in HARMLESS):
            yield text
