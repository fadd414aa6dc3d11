"""Downloads a checkpoint from the hub: resumed, pinned to a commit, every file's digest compared.

A lock file beside the weights names the commit and each file's sha256. ``HF_ENDPOINT`` and
``HF_TOKEN`` are huggingface_hub's own and mean what they mean there.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.hub.fetch import NotFetched, Wanted, fetch
from scripts.hub.lock import BadLock, Lock, merged, read, write
from serve.settings import REPOSITORY

EXAMPLES = """examples:
  python -m scripts.download_weights Qwen/Qwen3.5-4B
  python -m scripts.download_weights Qwen/Qwen3.5-4B --revision 0123abcd --out /data/qwen
  python -m scripts.download_weights owner/name --include '*.safetensors' --include '*.json'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all lies there as the hub tells it, 1 when it does not, 2 usage."""
    parsed = parser().parse_args(arguments)
    owner, _, name = parsed.repository.partition("/")
    if not owner or not name or "/" in name:
        print(f"{parsed.repository!r}: expected owner/name", file=sys.stderr)
        return 2
    folder: Path = parsed.out or REPOSITORY / "weights" / name.lower()
    # Both are read when the library is imported. Xet's own transfers have no resumption to show.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    try:
        lock = download(parsed, folder)
    except (NotFetched, BadLock) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run it again, it resumes", file=sys.stderr)
        return 1
    tell(lock, folder, as_json=parsed.json)
    return 0


def download(parsed: argparse.Namespace, folder: Path) -> Lock:
    """Fetch into ``folder`` and lock it.

    :raises NotFetched: it differs from what is locked there, or does not arrive.
    """
    locked = read(folder)
    revision = parsed.revision or (locked.asked if locked else "main")
    if locked and not parsed.update:
        if locked.repository != parsed.repository:
            raise NotFetched(f"{folder}: holds {locked.repository}: choose another --out")
        # What is locked stays what it is, wherever a branch has gone since.
        revision = locked.commit if revision == locked.asked else revision
        if revision != locked.commit:
            raise NotFetched(
                f"{folder}: locked at {locked.asked} ({locked.commit[:12]}), asked for {revision}: "
                "choose another --out, or give --update"
            )
    wanted = Wanted(parsed.repository, revision, parsed.include, parsed.exclude)
    lock = fetch(wanted, folder, _say, replaced=locked if parsed.update else None)
    lock = merged(locked, lock)
    write(lock, folder)
    return lock


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tell(lock: Lock, folder: Path, *, as_json: bool) -> None:
    """What lies there now, and what to do next."""
    if as_json:
        print(json.dumps({"folder": str(folder), **json.loads(lock.dump())}))
        return
    size = sum(item.size for item in lock.files)
    print(f"{lock.repository} at {lock.commit}: {len(lock.files)} files, {size:,} bytes")
    print(f"next: preheat bake verify-checkpoint {folder}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.download_weights",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("repository", metavar="OWNER/NAME", help="a model repository of the hub")
    top.add_argument("--revision", default="", help="branch, tag or commit (the lock's; main)")
    top.add_argument("--out", type=Path, help="folder to fill (weights/NAME)")
    top.add_argument("--include", action="append", default=[], metavar="GLOB", help="only these")
    top.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="not these")
    top.add_argument(
        "--update", action="store_true", help="leave the locked commit; replaces what it locked"
    )
    top.add_argument("--json", action="store_true", help="the lock as JSON, not a sentence")
    return top


if __name__ == "__main__":
    sys.exit(main())
