"""Which tensors a pickle's value holds, and under which names.

Checkpoints are state dicts (names to tensors), or mappings with a state dict among other things:

* a mapping with tensors is a state dict, and so is what lies deeper in it, names joined with dots;
* one without is searched for the one mapping that has tensors, or for the one of several that is
  named as training code names it (``STATE_DICTS``): that is the state dict, under its own names,
  and tensors elsewhere are only counted;
* where that says nothing, all tensors are taken, names joined with dots.

The value may contain itself, and be small and say much: a walk goes no deeper than the limit, looks
at no more values than ``ParseLimits.items``, and stops at few times the tensors that may be.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.torch_names import Pairs, View
from bake.errors import Malformed, Unsupported

STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")
# What is kept of values that are no tensors: how many, of how many elements, of how many letters.
VALUES, ELEMENTS, LETTERS = 1024, 64, 1024
WHOLE = range(-(2**63), 2**64)
# What a single tensor or number of values in a file is called.
ALONE = "tensor"
# Named values for each tensor that may be: a second is less than a million of them.
STEPS = 4
# A mapping or list within another takes as long as some values more.
PLACE = 4
INNER = frozenset({View, Pairs, list, tuple})


@dataclass
class Found:
    """Tensors by name in the pickle's order; scalars, texts and short lists; and counts."""

    tensors: dict[str, View] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    taken_from: str = ""
    others: int = 0
    left_out: int = 0


def found_in(value: Any, where: str, limits: ParseLimits) -> Found:
    """What the value of a pickle holds.

    :raises Malformed: a name twice, one that is too long, or the walk passes the limits.
    :raises Unsupported: there is no place for tensors in it.
    """
    found = Found()
    walk = _Walk(where, limits, found, STEPS * limits.tensors, limits.items)
    if type(value) is View:
        found.tensors[ALONE] = value
    elif type(value) is Pairs:
        found.taken_from = _state_dict(value, limits.items)
        walk.through(value)
    elif type(value) in (list, tuple):
        walk.through(value)
    else:
        raise Unsupported(f"{where}: holds no mapping of tensors")
    return found


def _state_dict(top: Pairs, visits: int) -> str:
    """The key of the one mapping that is the state dict; nothing: all of it is."""
    values = top[1::2]
    if any(type(value) is View for value in values):
        return ""
    if sum(len(value) for value in values if type(value) is Pairs) > visits:
        return ""
    held = [
        key
        for key, value in zip(top[::2], top[1::2], strict=True)
        if type(key) is str
        and type(value) is Pairs
        and any(type(inner) is View for inner in value[1::2])
    ]
    if len(held) > 1:
        held = [key for key in held if key in STATE_DICTS]
    return held[0] if len(held) == 1 else ""


@dataclass
class _Walk:
    """One walk, depth first, in the order of the pickle."""

    where: str
    limits: ParseLimits
    found: Found
    steps: int
    looks: int

    def through(self, root: Any) -> None:
        """Each place is an iterator, and a name; nothing is listed before it is looked at."""
        limits, taken = self.limits, self.found.taken_from
        places: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", _items(root))]
        while places:
            prefix, items = places[-1]
            for key, value in items:
                self.steps -= 1
                if self.steps < 0:
                    break
                name = self._name(prefix, key)
                if type(value) is View:
                    self._tensor(name, value, taken)
                elif self._inner(value):
                    self.steps -= PLACE
                    places.append((f"{name}.", _items(value)))
                    break
                else:
                    self._value(name, value)
            else:
                places.pop()
            if len(places) > limits.depth or min(self.steps, self.looks) < 0:
                raise Malformed(self.where, "values within values without an end")

    def _inner(self, value: Any) -> bool:
        """Whether it is walked: there may be tensors in it, or it is a mapping of few values."""
        kind = type(value)
        if kind not in (Pairs, list, tuple):
            return False
        self.looks -= len(value)
        if self.looks < 0:
            raise Malformed(self.where, "values within values without an end")
        if kind is Pairs and len(value) <= 2 * VALUES:
            return True
        return not INNER.isdisjoint(map(type, value))

    def _name(self, prefix: str, key: Any) -> str:
        if type(key) is int and key in WHOLE:
            key = str(key)
        elif type(key) is not str:
            raise Unsupported(f"{self.where}: a key that is neither text nor a whole number")
        name: str = prefix + key
        # Shorter in letters than in bytes, as a rule the same.
        most = self.limits.name_bytes
        if len(name) > most or (not name.isascii() and len(name.encode()) > most):
            raise Malformed(self.where, f"a name longer than {most} bytes: {name[:80]!r}")
        return name

    def _tensor(self, name: str, view: View, taken: str) -> None:
        found = self.found
        if taken:
            if not name.startswith(taken + "."):
                found.others += 1
                return
            name = name[len(taken) + 1 :]
        if name in found.tensors:
            raise Malformed(self.where, f"two tensors are named {name!r}")
        found.tensors[name] = view
        if len(found.tensors) > self.limits.tensors:
            raise Malformed(self.where, f"more than {self.limits.tensors} tensors")

    def _value(self, name: str, value: Any) -> None:
        found = self.found
        if name in found.values:
            raise Malformed(self.where, f"two values are named {name!r}")
        if type(value) is Pairs:
            # A vocabulary, say.
            found.left_out += len(value) // 2
        elif len(found.values) < VALUES and _short(value):
            found.values[name] = list(value) if type(value) in (list, tuple) else value
        else:
            found.left_out += 1


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if type(value) is Pairs:
        keys = iter(value)
        return zip(keys, keys, strict=True)
    return enumerate(value)


def _short(value: Any) -> bool:
    if type(value) in (list, tuple):
        return len(value) <= ELEMENTS and all(_scalar(inner) for inner in value)
    return _scalar(value)


def _scalar(value: Any) -> bool:
    if type(value) is int:
        return value in WHOLE
    return type(value) in (bool, float) or (type(value) is str and len(value) <= LETTERS)
