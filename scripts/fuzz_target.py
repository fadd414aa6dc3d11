"""One target of ``scripts.fuzz``, in a process of its own: libFuzzer's loop over one function.

    python -m scripts.fuzz_target TARGET COUNTS FOUND [libFuzzer's arguments]

``COUNTS`` is a file of sixteen bytes that is mapped: executions, and files accepted. What breaks
is written to ``FOUND`` as the file that the parser saw, and the process ends.

Mutations know the formats, as most of what is random is refused at the first look: a safetensors
header is changed and its length put right, a member of an archive is changed and the archive
written anew, what is missing of tensors' bytes is filled up. Targets named ``structured-`` are
built by hypothesis of the bytes that libFuzzer gives.
"""

import hashlib
import io
import mmap
import random
import re
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

INSTRUMENTED = ["bake.checkpoint", "blob.header", "blob.spelling", "blob.files"]
# Kernels are compiled by numba, which takes no other bytecode than Python's.
PLAIN = ["bake.checkpoint.hops", "bake.checkpoint.dequant"]
# Not typed, so imported by name.
TESTS = "tests.bake.checkpoint"
STRUCTURED = "structured-"
# Seconds of this process; those of the clock say more of the machine.
SECONDS = 1.0
MISSING = re.compile(r"expected (\d+) bytes of (?:data|tensors) by its header, got (-?\d+)")

Target = Callable[[bytes], bool]
Mutator = Callable[[bytes, int, int], bytes]


class TooSlow(Exception):
    """A file took longer than any may."""


def main(arguments: Sequence[str]) -> None:
    """Ends the process, as libFuzzer does."""
    import atheris

    name, counts, found, *options = arguments
    with atheris.instrument_imports(include=INSTRUMENTED, exclude=PLAIN):
        targets: dict[str, Target] = import_module(f"{TESTS}.oracles").TARGETS
    target = counted(targets[name.removeprefix(STRUCTURED)], Path(counts), Path(found))
    given = [sys.argv[0], *options]
    if name.startswith(STRUCTURED):
        atheris.Setup(given, built(name.removeprefix(STRUCTURED), target))
    else:
        mutator = MUTATORS.get(name)
        more = {"custom_mutator": mutator} if mutator else {}
        atheris.Setup(given, target, **more)
    atheris.Fuzz()


def counted(target: Target, counts: Path, found: Path) -> Callable[[bytes], None]:
    """``target``, counting; what it stumbles over is kept."""
    with counts.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 16)
    executions, accepted = struct.unpack("<2Q", shared[:])

    def one(raw: bytes) -> None:
        nonlocal executions, accepted
        began = time.process_time()
        try:
            accepted += target(raw)
            if (took := time.process_time() - began) > SECONDS:
                raise TooSlow(f"{took:.1f} s for {len(raw)} bytes")
        except Exception:
            (found / hashlib.sha256(raw).hexdigest()[:8]).write_bytes(raw)
            raise
        finally:
            executions += 1
            shared[:] = struct.pack("<2Q", executions, accepted)

    return one


def built(name: str, target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """``target`` over files that hypothesis builds."""
    from hypothesis import HealthCheck, given, settings

    strategy = import_module(f"{TESTS}.strategies").STRATEGIES[name]

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(raw: bytes) -> None:
        target(raw)

    fuzz: Callable[[bytes], object] = one.hypothesis.fuzz_one_input

    def run(choices: bytes) -> None:
        fuzz(choices)

    return run


def mutated(raw: bytes, most: int) -> bytes:
    """By libFuzzer, with its dictionary."""
    import atheris

    return bytes(atheris.Mutate(raw, max(most, len(raw), 1)))


def safetensors(raw: bytes, most: int, seed: int) -> bytes:
    """A header and its length; or any bytes."""
    if seed % 8 == 0 or len(raw) < 10:
        return mutated(raw, most)
    end = 8 + min(int.from_bytes(raw[:8], "little"), len(raw) - 8)
    header = mutated(raw[8:end], most - 8)
    made = len(header).to_bytes(8, "little") + header + raw[end:]
    return filled(made, most)


def gguf(raw: bytes, most: int, seed: int) -> bytes:
    """Any bytes, and as many tensors' bytes as they say."""
    made = mutated(raw, most)
    return filled(made, most) if seed % 4 else made


def filled(raw: bytes, most: int) -> bytes:
    """With as many bytes at the end as the parser misses, or has too many."""
    from bake.checkpoint import formats
    from bake.checkpoint.source import Bytes
    from bake.errors import BakeError

    try:
        formats.parse(Bytes(raw), import_module(f"{TESTS}.oracles").SMALL)
    except BakeError as error:
        if said := MISSING.search(str(error)):
            missing = int(said[1]) - int(said[2])
            if -len(raw) < missing <= most - len(raw):
                return raw + bytes(missing) if missing > 0 else raw[:missing]
    return raw


def archive(raw: bytes, most: int, seed: int) -> bytes:
    """A member's bytes or its name, and the archive written anew; or any bytes."""
    chance = random.Random(seed)  # noqa: S311 - to repeat, not to hide
    members = listed(raw) if chance.random() < 0.8 else []
    if not members:
        return mutated(raw, most)
    at = chance.randrange(len(members))
    if chance.random() < 0.5:
        at = next((i for i, one in enumerate(members) if one[0].endswith("data.pkl")), at)
    name, content = members[at]
    if chance.random() < 0.1:
        name = mutated(name.encode(errors="replace"), 64).decode("latin-1")
    else:
        content = mutated(content, most // 2)
    made = rewritten([*members[:at], (name, content), *members[at + 1 :]], chance)
    return made if len(made) <= most else mutated(raw, most)


def listed(raw: bytes) -> list[tuple[str, bytes]]:
    """Members as Python's reader finds them; none where it finds none."""
    # What it raises of bad bytes is not said: nearly anything.
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(raw)) as whole:
        return [(one.filename, whole.read(one)) for one in whole.infolist() if one.file_size < 4096]
    return []


def rewritten(members: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    """An archive in any of the forms, with a lie in it now and then."""
    edges = import_module(f"{TESTS}.strategies").EDGES
    lies = 0.02 * (chance.random() < 0.3)

    def tell(value: int, bits: int = 64) -> int:
        return chance.choice(edges) % 2**bits if lies and chance.random() < lies else value

    made: bytes = import_module(f"{TESTS}.handmade").archive(
        members,
        tell,
        deflate=chance.random() < 0.3,
        described=chance.random() < 0.3,
        wide=chance.random() < 0.3,
        align=chance.choice((1, 1, 64)),
    )
    return made


MUTATORS: dict[str, Mutator] = {
    "safetensors": safetensors,
    "gguf": gguf,
    "gguf-tokenizer": gguf,
    "zip": archive,
    "pth": archive,
    "npz": archive,
}

if __name__ == "__main__":
    main(sys.argv[1:])
