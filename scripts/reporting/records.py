"""Which records a report is made from: the fullest of each kind, variant, model and target, and of
these the newest.

Reads files; knows the form of a record, not what its kind holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.record import Record

S = TypeVar("S", bound="Shape")
T = TypeVar("T")


class Unknown(Exception):
    """A record of a known kind has a shape that the report does not know; one line says where."""


class Shape(BaseModel):
    """Base of what a reader expects of a summary: more may be there, nothing may be missing."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True)
class Found:
    """A record and where it lies, from the repository's root."""

    name: str
    record: Record

    @cached_property
    def variant(self) -> str:
        """Whom it is about: as the record says, else its folder; empty for none."""
        told = self.record.variant.get("variant")
        folder = Path(self.name).parts[1]
        return str(told) if told else folder if folder != "measurements" else ""

    @property
    def model(self) -> str:
        """The model's name, where the record tells it."""
        for place in (self.record.variant, self.record.parameters, self.record.summary):
            told = place.get("model")
            told = told.get("name") if isinstance(told, dict) else told
            if told:
                return str(told)
        return ""

    @property
    def place(self) -> str:
        """The model, and the target where the record tells it: where figures can be compared."""
        return ", ".join(filter(None, (self.model, self.target)))

    @property
    def target(self) -> str:
        """The target's name, where the record tells it."""
        told = self.record.variant.get("target")
        return str(told.get("name", "")) if isinstance(told, dict) else str(told or "")


@dataclass(frozen=True)
class Source:
    """All records of a checkout; those that cannot be read are told, not hidden."""

    records: Sequence[Found]
    unread: Sequence[str] = ()

    def of(
        self,
        kind: str,
        apart: Callable[[Found], str] = lambda _: "",
        worth: Callable[[Found], tuple[int, ...]] = lambda _: (),
    ) -> list[Found]:
        """Of ``kind`` for each variant, model and target, by name, and for what ``apart`` tells
        apart: the one of the greatest ``worth``, of these the newest.
        """
        best: dict[tuple[str, str, str, str], Found] = {}
        for found in self.records:
            if found.record.kind == kind:
                key = (found.variant, found.model, found.target, apart(found))
                had = best.get(key)
                if not had or (worth(had), had.record.made) < (worth(found), found.record.made):
                    best[key] = found
        return [best[key] for key in sorted(best)]


def read(root: Path) -> Source:
    """Every record under ``root/experiments``."""
    found, unread = [], []
    for path in sorted(root.glob("experiments/**/measurements/*.json")):
        name = str(path.relative_to(root))
        try:
            found.append(Found(name, Record.model_validate_json(path.read_bytes())))
        except (ValidationError, OSError) as error:
            unread.append(f"{name}: {str(error).splitlines()[0]}")
    return Source(found, unread)


def shaped(cls: type[S], found: Found) -> S:
    """The summary of ``found`` as ``cls``.

    :raises Unknown: it has another shape.
    """
    return part(cls, found.record.summary, found.name)


def summary(cls: type[S]) -> Callable[[Found], S]:
    """A reader of whole summaries as ``cls``.

    :raises Unknown: (the reader) it has another shape.
    """
    return lambda found: shaped(cls, found)


def part(cls: type[S], document: Any, where: str) -> S:
    """``document`` as ``cls``.

    :raises Unknown: it has another shape.
    """
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise Unknown(f"{where}: {place}: {first['msg']}") from None


def named(cls: type[S], told: Mapping[str, Any], where: str) -> dict[str, S]:
    """Each of ``told`` by its name, as ``cls``.

    :raises Unknown: there is none, or one has another shape.
    """
    if not told:
        raise Unknown(f"{where}: nothing in it")
    return {name: part(cls, facts, f"{where}: {name}") for name, facts in told.items()}


def each(cls: type[S]) -> Callable[[Found], dict[str, S]]:
    """A reader of summaries that hold one ``cls`` by each name.

    :raises Unknown: (the reader) there is none, or one has another shape.
    """
    return lambda found: named(cls, found.record.summary, found.name)


def taken(
    read_: Callable[[Found], T], kind: Sequence[Found]
) -> tuple[list[tuple[Found, T]], list[str]]:
    """Records with what ``read_`` makes of them, and a line for each that has another shape."""
    good, bad = [], []
    for found in kind:
        try:
            good.append((found, read_(found)))
        except Unknown as error:
            bad.append(str(error))
    return good, bad


def machines(records: Sequence[Found]) -> Iterator[str]:
    """Facts of the machines of ``records``, each once."""
    seen = set()
    for found in records:
        machine = found.record.machine
        gib = machine.memory_bytes / 2**30
        line = (
            f"{machine.cores} cores of {machine.processor}, {gib:.0f} GiB, Linux {machine.kernel}"
        )
        if line not in seen:
            seen.add(line)
            yield line
