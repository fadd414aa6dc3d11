"""The fake engine, which also fills and uses a compile cache as vLLM does, or fails at that.

caching_engine.py --uds PATH [--fault FAULT] … and any switch of the fake engine
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import fake_engine
from tests.bake.records import record

GRAPHS = {"backbone": "aa" * 32, "eagle_head": "bb" * 32}
FORCED = os.environ.get("VLLM_FORCE_AOT_LOAD") == "1"


def place(digest: str) -> Path:
    folder = Path(os.environ["VLLM_CACHE_ROOT"]) / "torch_compile_cache" / "torch_aot_compile"
    return folder / digest / "rank_0_0" / "model"


def graphs(fault: str) -> Iterator[str]:
    """Lines that vLLM would log for each graph, after doing what they say."""
    for name, digest in GRAPHS.items():
        path = place(digest)
        again = FORCED and fault == "compiles-again" and name == "eagle_head"
        hit = path.exists() and not again
        if fault != "no-records":
            told(name, digest, "loaded" if hit else "compiled", fault)
        if hit:
            yield f"[decorators.py:319] [{name}] Directly load AOT compilation from path {path}"
            continue
        if fault == "unsaved":
            yield f"[decorators.py:749] [{name}] unable to save AOT compiled function to {path}: no"
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
        library = path.parents[1] / "inductor_cache" / "ab" / "cab.main.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        library.write_bytes(b"\x7fELF")
        (library.parents[1] / "locks").mkdir(exist_ok=True)
        (library.parents[1] / "locks" / "cab.lock").touch()
        yield f"[decorators.py:319] [{name}] saved AOT compiled function to {path}"


def told(name: str, digest: str, outcome: str, fault: str) -> None:
    changes = {"hash": digest, "outcome": outcome}
    if FORCED and fault in ("other-key", "compiles-again"):
        changes["config/parts/model_config/factors/model"] = "/elsewhere/tiny"
    folder = Path(os.environ["PREHEAT_RECORD_FACTORS"])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(name, **changes))
    (folder / f"{name}-{digest[:12]}-rank_0_0.json").write_text(text)


def refuse() -> None:
    print("RuntimeError: Source code has changed since the last compilation.", flush=True)
    os._exit(1)


def scribble() -> None:
    (place(GRAPHS["backbone"]).parents[1] / "inductor_cache" / "more.so").write_bytes(b"x")


def stray() -> None:
    folder = Path(os.environ["TMPDIR"]) / "torchinductor_root"
    folder.mkdir()
    (folder / "header.h.gch").write_bytes(b"x")


def tamper() -> None:
    path = place(GRAPHS["backbone"])
    path.chmod(0o644)
    path.write_bytes(b"other")


def fill() -> None:
    """As vLLM does when the disk is full: it warns, and goes on without."""
    with (Path(os.environ["VLLM_CACHE_ROOT"]).parent / "big").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass


def wander() -> None:
    """One token of a long answer is another."""
    known = fake_engine.ids

    def ids(*tokens: str) -> list[int]:
        found = known(*tokens)
        return [*found[:20], 7, *found[21:]] if len(found) > 20 else found

    fake_engine.ids = ids


def stutter() -> None:
    """The same tokens, but the last is never said."""
    known = fake_engine.ids
    fake_engine.ids = lambda *tokens: known(*tokens)[:47]


def mute() -> None:
    """An engine that knows nothing of token ids."""
    fake_engine.ids = lambda *_: None


# While verified; `fill` while baked.
FAULTS: dict[str, Callable[[], None]] = {
    "refused": refuse,
    "other-key": refuse,
    "scribbles": scribble,
    "stray": stray,
    "tampers": tamper,
    "wanders": wander,
    "stutters": stutter,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", default="")
    asked, _ = parser.parse_known_args()
    if asked.fault == "fills" and not FORCED:
        fill()
        asked.fault = "unsaved"
    if asked.fault == "mute":
        mute()
    lines = tuple(graphs(asked.fault))
    if FORCED and asked.fault in FAULTS:
        FAULTS[asked.fault]()
    told = [line for line in fake_engine.START if "AOT comp" not in line]
    fake_engine.START = (*told[:-1], *lines, told[-1])
    return fake_engine.main()


if __name__ == "__main__":
    sys.exit(main())
