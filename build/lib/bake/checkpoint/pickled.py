"""Pickles of tensors, read without running anything.

A pickle is a program for a stack machine, and its danger is two instructions: GLOBAL imports what
it names, REDUCE calls it. Here a name is looked up in a closed table of markers of ours and
nowhere else, and REDUCE does to a marker what the table says: it keeps the arguments. Instructions
that torch's state dicts do not use are refused by name and byte. Nothing is imported or called,
no attribute is set, and no object is made but numbers, text, lists, tuples and the types below.

Mappings are kept as flat lists of keys and values: no key is hashed, so none can be made to
collide, and what contains itself is only a list that contains itself. Whoever walks the result
must bound the walk: a short pickle can say a deep or an endless one.

Opcodes are those of Python's ``pickletools`` (protocols 2 to 5).
"""

import struct
from itertools import repeat
from struct import Struct
from typing import Any, NamedTuple

from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.opcodes import (
    APPEND,
    APPENDS,
    BINFLOAT,
    BINGET,
    BININT,
    BININT1,
    BININT2,
    BINPERSID,
    BINPUT,
    BINUNICODE,
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    FRAME,
    GLOBAL,
    LONG_BINGET,
    LONG_BINPUT,
    LONGS,
    MARK,
    MEMOIZE,
    NEWFALSE,
    NEWTRUE,
    NONE,
    OPCODES,
    PROTO,
    QUAD,
    REDUCE,
    SETITEM,
    SETITEMS,
    SIZED,
    STACK_GLOBAL,
    STOP,
    STRINGS,
    TEXTS,
    TUPLE,
    TUPLE1,
    TUPLE2,
    TUPLE3,
    WORD,
)
from bake.checkpoint.torch_names import (
    NAME,
    NAMES,
    REFUSED,
    Kind,
    Name,
    Pairs,
    Storage,
    Unknown,
    Wrong,
    reduced,
)
from bake.errors import Malformed, Unsupported

# Bytes of a whole number.
LONG = 255
# 45,000 tensors in a file, or half a second.
INSTRUCTIONS = 1_500_000
SHORT, INT, FLOAT = Struct("<H"), Struct("<i"), Struct(">d")
PERSISTENT = 5


class Read(NamedTuple):
    """What a pickle says, where the bytes go on after it, and the storages it refers to."""

    value: Any
    end: int
    storages: list[Storage]


class CutShort(Malformed):
    """The bytes end within an instruction: more of them may help."""


def read(raw: bytes, where: str, limits: ParseLimits, begin: int = 0) -> Read:
    """The value of the pickle at the start of ``raw``, which is at byte ``begin`` of ``where``.

    :raises Malformed: it is broken, or passes the limits.
    :raises Unsupported: an instruction or a name that state dicts do not need.
    """
    if len(raw) < 2:
        raise CutShort(where, "too short for a pickle", begin)
    if raw[0] != PROTO or raw[1] not in (2, 3, 4, 5):
        raise Malformed(where, "no pickle of protocol 2 to 5", begin)
    return _run(raw, where, limits, begin)


def _run(  # noqa: PLR0912, PLR0915 - a call for each instruction would take twice the time
    raw: bytes, where: str, limits: ParseLimits, begin: int
) -> Read:
    """Instructions in the order of how often torch writes them."""
    at, size, word, copied = 2, len(raw), WORD.unpack_from, 0
    most = min(limits.items, INSTRUCTIONS)
    stack: list[Any] = []
    # What lay on the stack at each MARK that is still open: popping stops there by itself.
    marks: list[list[Any]] = []
    memo: list[Any] = []
    storages: list[Storage] = []
    try:
        for _ in repeat(None, most):
            op = raw[at]
            if op == LONG_BINPUT:
                (index,) = word(raw, at + 1)
                if index == len(memo):
                    memo.append(stack[-1])
                else:
                    _put(memo, index, stack[-1])
                at += 5
            elif op == BINGET:
                stack.append(memo[raw[at + 1]])
                at += 2
            elif op == BININT1:
                stack.append(raw[at + 1])
                at += 2
            elif op == BINUNICODE:
                end = at + 5 + word(raw, at + 1)[0]
                if end > size:
                    raise IndexError
                stack.append(raw[at + 5 : end].decode())
                at = end
            elif op == MARK:
                marks.append(stack)
                stack = []
                at += 1
            elif op == TUPLE:
                made: Any = tuple(stack)
                stack = marks.pop()
                stack.append(made)
                at += 1
            elif op == REDUCE:
                args = stack.pop()
                made = reduced(stack[-1], args)
                if type(made) is Pairs or type(made) is bytes:
                    # Copies, of what may be long and be given again and again.
                    copied += len(made)
                    if copied > limits.items:
                        raise Wrong("copies more than is allowed")
                stack[-1] = made
                at += 1
            elif op == TUPLE2:
                second = stack.pop()
                stack[-1] = (stack[-1], second)
                at += 1
            elif op == TUPLE1:
                stack[-1] = (stack[-1],)
                at += 1
            elif op == BININT:
                stack.append(INT.unpack_from(raw, at + 1)[0])
                at += 5
            elif op == BINPUT:
                if raw[at + 1] == len(memo):
                    memo.append(stack[-1])
                else:
                    _put(memo, raw[at + 1], stack[-1])
                at += 2
            elif op == BININT2:
                stack.append(SHORT.unpack_from(raw, at + 1)[0])
                at += 3
            elif op == EMPTY_TUPLE:
                stack.append(())
                at += 1
            elif op == BINPERSID:
                storages.append(_persistent(stack[-1]))
                stack[-1] = storages[-1]
                at += 1
            elif op == NEWFALSE:
                stack.append(False)
                at += 1
            elif op == LONG_BINGET:
                stack.append(memo[word(raw, at + 1)[0]])
                at += 5
            elif op == MEMOIZE:
                memo.append(stack[-1])
                at += 1
            elif op in SIZED:
                number, counter = SIZED[op]
                ahead = at + 1 + number
                end = ahead + counter(raw, at + 1)[0]
                if end > size:
                    raise IndexError
                stack.append(_content(op, raw[ahead:end]))
                at = end
            elif op == NEWTRUE:
                stack.append(True)
                at += 1
            elif op == NONE:
                stack.append(None)
                at += 1
            elif op == TUPLE3:
                third, second = stack.pop(), stack.pop()
                stack[-1] = (stack[-1], second, third)
                at += 1
            elif op == BINFLOAT:
                stack.append(FLOAT.unpack_from(raw, at + 1)[0])
                at += 9
            elif op == EMPTY_DICT:
                stack.append(Pairs())
                at += 1
            elif op == EMPTY_LIST:
                stack.append([])
                at += 1
            elif op == SETITEMS:
                items, stack = stack, marks.pop()
                _fill(stack[-1], Pairs, items)
                at += 1
            elif op == SETITEM:
                item = stack.pop()
                key = stack.pop()
                _fill(stack[-1], Pairs, [key, item])
                at += 1
            elif op == APPENDS:
                items, stack = stack, marks.pop()
                _fill(stack[-1], list, items)
                at += 1
            elif op == APPEND:
                item = stack.pop()
                _fill(stack[-1], list, [item])
                at += 1
            elif op == GLOBAL:
                module, name, end = _line(raw, at + 1)
                stack.append(_named(module, name))
                at = end
            elif op == STACK_GLOBAL:
                name = stack.pop()
                stack[-1] = _named(stack[-1], name)
                at += 1
            elif op == BUILD:
                state = stack.pop()
                _build(stack[-1], state)
                at += 1
            elif op == FRAME:
                # Says where reading may pause; instructions are the same without it.
                if at + 9 + QUAD.unpack_from(raw, at + 1)[0] > size:
                    raise IndexError
                at += 9
            elif op == STOP:
                if marks or len(stack) != 1:
                    raise Wrong(f"leaves {len(stack)} values")
                return Read(stack[0], begin + at + 1, storages)
            else:
                raise Unknown("not an instruction of state dicts")
    except (IndexError, struct.error):
        raise _ended(raw, where, begin, at) from None
    except UnicodeDecodeError as error:
        detail = f"{_op(raw, at)}: text that is none: {error.reason}"
        raise Malformed(where, detail, begin + at) from None
    except Wrong as error:
        raise Malformed(where, f"{_op(raw, at)}: {error}", begin + at) from None
    except Unknown as error:
        raise Unsupported(f"{where}: {_op(raw, at)}: {error} (at byte {begin + at})") from None
    raise Malformed(where, f"a pickle of more than {most} instructions", begin)


def _ended(raw: bytes, where: str, begin: int, at: int) -> Malformed:
    """Too few bytes, or too few values: the first is told apart, since there may be more."""
    if at + 9 > len(raw) or raw[at] in SIZED or raw[at] in (GLOBAL, FRAME):
        return CutShort(where, f"{_op(raw, at)}: the bytes or the stack end", begin + at)
    return Malformed(where, f"{_op(raw, at)}: wants a value that is not there", begin + at)


def _op(raw: bytes, at: int) -> str:
    if at >= len(raw):
        return "the end"
    return OPCODES.get(raw[at], f"byte {raw[at]:#04x}")


def _put(memo: list[Any], index: int, value: Any) -> None:
    """Writers count from 0, and Python 2 from 1: a memo is never longer than its pickle."""
    count = len(memo)
    if index == count:
        memo.append(value)
    elif index < count:
        memo[index] = value
    elif index == count + 1:
        memo += (None, value)
    else:
        raise Wrong(f"remembers value {index} after {count}")


def _content(op: int, raw: bytes) -> Any:
    """Text, bytes or a whole number."""
    if op in TEXTS:
        return raw.decode()
    if op in LONGS:
        if len(raw) > LONG:
            raise Wrong(f"a whole number of {len(raw)} bytes")
        return int.from_bytes(raw, "little", signed=True)
    if op in STRINGS:
        # Python 2 wrote both text and bytes so. Torch reads them as ASCII or UTF-8.
        return raw.decode("utf-8", "replace")
    return raw


def _line(raw: bytes, at: int) -> tuple[str, str, int]:
    """Two lines: a module and a name in it."""
    middle = raw.find(b"\n", at, at + NAME)
    end = raw.find(b"\n", middle + 1, middle + 1 + NAME) if middle >= 0 else -1
    if end < 0:
        if len(raw) - at < 2 * NAME:
            raise IndexError
        raise Wrong("a name without an end")
    return raw[at:middle].decode("latin-1"), raw[middle + 1 : end].decode("latin-1"), end + 1


def _named(module: Any, name: Any) -> Name | Kind:
    if type(module) is not str or type(name) is not str:
        raise Wrong("a name that is no text")
    found = NAMES.get((module, name))
    if found is None:
        text = f"{module[:NAME]}.{name[:NAME]}"
        raise Unknown(f"{ascii(text)[1:-1]} {REFUSED.get(name, 'is not allowed')}")
    return found


def _persistent(pid: Any) -> Storage:
    """``("storage", type, key, location, elements)``; the older form adds a view, or None."""
    if type(pid) is not tuple or not pid or pid[0] != "storage":
        raise Unknown("refers to something else than a storage")
    if len(pid) not in (PERSISTENT, PERSISTENT + 1) or type(pid[1]) is not Kind:
        raise Unknown("a storage of an unknown type")
    return Storage(pid[1], pid[2], pid[4], pid[5] if len(pid) > PERSISTENT else None)


def _fill(target: Any, kind: type[list[Any]], items: list[Any]) -> None:
    if type(target) is not kind:
        raise Unknown(f"items for what is no {'list' if kind is list else 'mapping'}")
    if kind is Pairs and len(items) % 2:
        raise Wrong("a key without a value")
    target.extend(items)


def _build(target: Any, state: Any) -> None:
    """A state dict has attributes (versions of modules), which say nothing of tensors."""
    if type(target) is not Pairs or type(state) is not Pairs:
        raise Unknown("sets the state of something else than a mapping")
