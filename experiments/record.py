"""One measurement as it is kept: raw samples, machine, versions, what was on. Added, never edited.

A record is a JSON file in ``experiments/<variant>/measurements/``, named by kind and time. Knows
the form of a record, not what is measured.
"""

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from blob.files import replace

SCHEMA = 1
HERE = Path(__file__).resolve().parent
# Of what is not one variant's.
MEASUREMENTS = HERE / "measurements"


class Machine(BaseModel):
    """Where it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str = Field(description="Model name of the CPU.")
    cores: int = Field(description="Cores that the process may use.")
    memory_bytes: int = Field(description="Physical memory.")
    kernel: str = Field(description="Release of the kernel.")
    load_before: float = Field(description="One-minute load average before the first sample.")


class Record(BaseModel):
    """One run of one measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA, description="Version of this form.")
    kind: str = Field(description="What was measured, e.g. `acceptance`.")
    made: datetime = Field(description="When it began, UTC.")
    command: list[str] = Field(description="What to type to measure again.")
    machine: Machine = Field(description="Where.")
    variant: dict[str, Any] = Field(description="What `/variant` said: levers, drops, versions.")
    parameters: dict[str, Any] = Field(description="What was asked for.")
    summary: dict[str, Any] = Field(description="Figures made from the samples, all of them.")
    samples: list[dict[str, Any]] = Field(description="Every sample, in order, none left out.")


def this_machine() -> Machine:
    """Facts of this machine, read from ``/proc``."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return Machine(
        processor=model[1] if model else platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        load_before=os.getloadavg()[0],
    )


def now() -> datetime:
    """The time of a record, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def typed(module: str, arguments: Sequence[str] | None = None) -> list[str]:
    """What to type for a command that was called with ``arguments``; None: those of the process."""
    words = sys.argv[1:] if arguments is None else arguments
    return ["python", "-m", module, *words]


def folder_of(variant: str) -> Path:
    """Where a variant's records lie."""
    return HERE / variant / MEASUREMENTS.name


def check_writable(folder: Path) -> None:
    """Whether a record may be added to ``folder``, which is made: hours of measuring are not to end
    with that.

    :raises OSError: it may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def add(record: Record, folder: Path) -> Path:
    """Write ``record`` as a new file in ``folder``.

    :raises FileExistsError: there is one of this kind and second; records are never replaced.
    :raises OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.kind}_{record.made:%Y-%m-%dT%H%M%SZ}.json"
    raw = (record.model_dump_json(indent=1) + "\n").encode()
    # Takes the name, as no rename does that replaces nothing.
    path.touch(exist_ok=False)
    try:
        replace(path, raw, 0o644)
    except BaseException:
        # Of what took hours to measure no half may be read as the whole.
        path.unlink()
        raise
    return path
