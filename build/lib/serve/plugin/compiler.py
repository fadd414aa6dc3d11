"""Remembers what the compiler said at the bake, so that serving needs none.

Torch 2.13 puts what g++ says of itself into the key of each C++ kernel: to find a baked library it
must be asked, at every start, although nothing is compiled. What it said lies in the baked root,
a file for each question, and is said again by whoever serves from there (``VLLM_FORCE_AOT_LOAD``).
So the image holds no compiler, and one that was upgraded since the bake makes no key differ.

    compiler/<digest of the question>.json   {"answer":…,"arguments":[…],"stderr":…}

Knows nothing of compiling, which goes another way than asking (``subprocess.run``).
"""

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve.plugin import factors, frozen

logger = logging.getLogger("vllm.preheat")

FOLDER = "compiler"
CACHE = "VLLM_CACHE_ROOT"
# Of what can be said to a process beside its arguments: the first is part of the question, the
# second only fixes the language. Whoever says more is not understood here, and let through.
UNDERSTOOD = frozenset(("stderr", "env"))
STREAMS = {None: "", subprocess.STDOUT: "answer", subprocess.DEVNULL: "nowhere"}

CheckOutput = Callable[..., Any]


def recording_needed() -> bool:
    """Whether a root is being baked here, and nobody listens yet."""
    return not frozen.forced() and _baking() is not None and not _listening()


def replay_needed() -> bool:
    """Whether this engine must load what it runs, and the answers are there and not used yet."""
    root = _root()
    return frozen.forced() and root is not None and (root / FOLDER).is_dir() and not _listening()


def record() -> None:
    """Write down from now on what Inductor asks and is told, in the root that is being baked."""
    if (root := _baking()) is not None:
        _listen(lambda ask: Recorder(root / FOLDER, ask))


def replay() -> None:
    """Answer Inductor from the baked root from now on."""
    if (root := _root()) is not None:
        _listen(lambda ask: Replayer(root / FOLDER, ask))


class Recorder:
    """``subprocess.check_output`` that keeps each answer in ``folder``."""

    def __init__(self, folder: Path, ask: CheckOutput) -> None:
        self._folder = folder
        self._ask = ask

    def __call__(self, arguments: Sequence[str], **how: Any) -> Any:
        """Ask; a question that fails is answered by its failure, and not kept."""
        answer = self._ask(arguments, **how)
        if understood(arguments, how) and isinstance(answer, bytes):
            try:
                self._keep(question(arguments, how), answer)
            except OSError as error:
                # Inductor takes a failed question for another compiler: the key would differ.
                logger.warning("preheat: not recorded what %s said: %s", arguments, error)
        return answer

    def _keep(self, asked: dict[str, Any], answer: bytes) -> None:
        path = self._folder / name(asked)
        if path.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        told = {**asked, "answer": answer.decode(errors="surrogateescape")}
        # Many ask at once: whoever reads it finds all of it, whoever's it is.
        temporary = self._folder / f".{os.getpid()}-{threading.get_ident()}.tmp"
        try:
            temporary.write_text(json.dumps(told, sort_keys=True) + "\n")
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class Replayer:
    """``subprocess.check_output`` that knows the answers in ``folder``, and asks for others."""

    def __init__(self, folder: Path, ask: CheckOutput) -> None:
        self._folder = folder
        self._ask = ask

    def __call__(self, arguments: Sequence[str], **how: Any) -> Any:
        """What was said at the bake; what is not there is asked now."""
        if understood(arguments, how):
            with contextlib.suppress(FileNotFoundError):
                told = json.loads((self._folder / name(question(arguments, how))).read_text())
                return told["answer"].encode(errors="surrogateescape")
        logger.warning("preheat: nobody asked at the bake: %s", arguments)
        return self._ask(arguments, **how)


class Subprocess:
    """The module, as ``cpp_builder`` sees it: with ``check_output`` ours and all else its own."""

    def __init__(self, module: Any, check_output: CheckOutput) -> None:
        self._module = module
        self.check_output = check_output

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._module, attribute)


def understood(arguments: Any, how: dict[str, Any]) -> bool:
    """Whether this is a question of the kind that is kept: bytes for plain arguments."""
    return (
        isinstance(arguments, list | tuple)
        and how.keys() <= UNDERSTOOD
        and how.get("stderr") in STREAMS
    )


def question(arguments: Sequence[str], how: dict[str, Any]) -> dict[str, Any]:
    """What tells one question from another; the compiler by name, wherever it lies."""
    return {"arguments": [*map(str, arguments)], "stderr": STREAMS[how.get("stderr")]}


def name(asked: dict[str, Any]) -> str:
    """Of the file that holds the answer."""
    said = json.dumps(asked, sort_keys=True)
    return f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def _root() -> Path | None:
    """The root that this engine's cache is in."""
    cache = os.environ.get(CACHE)
    return Path(cache).parent if cache else None


def _baking() -> Path | None:
    """That root, if it is the one that the factors of its keys go to."""
    records, root = os.environ.get(factors.VARIABLE), _root()
    return root if records and Path(records).parent == root else None


def _listening() -> bool:
    from torch._inductor import cpp_builder

    return isinstance(cpp_builder.subprocess, Subprocess)


def _listen(how: Callable[[CheckOutput], CheckOutput]) -> None:
    from torch._inductor import cpp_builder

    real = cpp_builder.subprocess
    cpp_builder.subprocess = Subprocess(real, how(real.check_output))
