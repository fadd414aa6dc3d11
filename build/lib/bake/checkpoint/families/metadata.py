"""GGUF's metadata, asked for by name and kind: what is not there or not that kind is said so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Listed
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported

MISSING = "its writer left out what the conversion needs; take another file of this model"


@dataclass(frozen=True)
class Metadata:
    """``source`` is the file, of which long lists are read; ``prefix`` goes before keys."""

    source: Source
    values: Mapping[str, Any]
    prefix: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return self.source.name

    def under(self, prefix: str) -> "Metadata":
        """The same values, asked for by what comes after ``prefix``."""
        return Metadata(self.source, self.values, f"{prefix}.")

    def get(self, key: str) -> Any:
        """Whatever there is; ``None`` if nothing."""
        return self.values.get(self.prefix + key)

    def natural(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A whole number from 0. A list of the same number in all places is that number.

        :raises Unsupported: it is missing, and has no default; or layers differ in it.
        :raises Malformed: it is something else.
        """
        told = self.get(key)
        if isinstance(told, list) and told:
            told = self._same(key, told)
        if told is None:
            return self._missing(key) if default is None else default
        if type(told) is not int or not 0 <= told <= most:
            raise self._wrong(key, f"no whole number from 0 to {most}")
        return told

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as short as float32 has it: 1e-05 and not 9.999999747378752e-06.

        :raises Unsupported: it is missing, and has no default.
        :raises Malformed: it is something else.
        """
        told = self.get(key)
        if told is None:
            return float(self._missing(key)) if default is None else default
        # NaN is no smaller than anything; NumPy knows no whole number above 64 bits.
        if type(told) not in (int, float) or not abs(told) <= 1e30:
            raise self._wrong(key, "no finite number")
        short = np.float32(told)
        return float(str(short)) if float(short) == told else float(told)

    def text(self, key: str, default: str | None = None) -> str:
        """:raises Unsupported: it is missing, and has no default.

        :raises Malformed: it is no text.
        """
        told = self.get(key)
        if told is None:
            return str(self._missing(key)) if default is None else default
        if not isinstance(told, str):
            raise self._wrong(key, "no text")
        return told

    def truth(self, key: str, default: bool) -> bool:
        """:raises Malformed: it is neither true nor false."""
        told = self.get(key)
        if told is None:
            return default
        if not isinstance(told, bool):
            raise self._wrong(key, "neither true nor false")
        return told

    def items(self, key: str) -> list[Any] | NDArray[Any] | None:
        """A list, short or long; texts are bytes, as they stand in the file. ``None``: no list.

        :raises Malformed: it is something else.
        """
        told = self.get(key)
        if told is None:
            return None
        if isinstance(told, Listed):
            # Every parser is loaded when one is needed, and a folder has no long lists.
            from bake.checkpoint.gguf import values

            found: list[Any] | NDArray[Any] = values(self.source, told)
            return found
        if not isinstance(told, list):
            raise self._wrong(key, "no list")
        return [
            one.encode(errors="surrogateescape") if isinstance(one, str) else one for one in told
        ]

    def texts(self, key: str) -> list[bytes] | None:
        """A list of texts. ``None``: there is none.

        :raises Malformed: it is something else.
        """
        told = self.items(key)
        if told is None:
            return None
        if not isinstance(told, list) or not all(isinstance(one, bytes) for one in told):
            raise self._wrong(key, "no list of texts")
        return told

    def numbers(self, key: str) -> NDArray[Any] | None:
        """A list of finite numbers. ``None``: there is none.

        :raises Malformed: it is something else.
        """
        told = self.items(key)
        if told is None:
            return None
        if isinstance(told, list) and not all(type(one) in (int, float, bool) for one in told):
            raise self._wrong(key, "no list of numbers")
        numbers = np.asarray(told)
        if numbers.dtype.kind not in "iufb" or not np.isfinite(numbers).all():
            raise self._wrong(key, "no list of finite numbers")
        return numbers

    def truths(self, key: str, count: int) -> list[bool]:
        """A list of so many truths, or of 0 and 1.

        :raises Malformed: it is something else.
        """
        told = self.numbers(key)
        if told is None or len(told) != count or not np.isin(told, (0, 1)).all():
            raise self._wrong(key, f"no list of {count} truths")
        return [bool(one) for one in told]

    def unknown(self, known: frozenset[str]) -> list[str]:
        """Keys under the prefix that are not among these: what they ask for is not known."""
        under = (key for key in self.values if key.startswith(self.prefix))
        return sorted(key for key in under if key.removeprefix(self.prefix) not in known)

    def _missing(self, key: str) -> int:
        raise Unsupported(f"{self.where}: {self.prefix}{key} is missing", MISSING)

    def _same(self, key: str, told: list[Any]) -> Any:
        if any(one != told[0] for one in told):
            raise Unsupported(
                f"{self.where}: {self.prefix}{key} differs from layer to layer",
                "only models whose layers are alike in it are converted",
            )
        return told[0]

    def _wrong(self, key: str, what: str) -> Malformed:
        told = self.get(key)
        said = f"a list of {told.count}" if isinstance(told, Listed) else repr(told)[:80]
        return Malformed(self.where, f"{self.prefix}{key} is {said}, {what}")
