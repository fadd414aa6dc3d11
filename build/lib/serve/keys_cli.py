"""``preheat serve keys add | list | revoke``: the file of keys, by hand."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serve import keyring
from serve.cli import positive, spoken
from serve.errors import ConfigError, nearest
from serve.keyring import KeyringError, Record, Records
from serve.keys import digest_of, new_secret
from serve.routes import FORWARDED, OWN
from serve.settings import read_settings, variable

VARIABLE = variable("keys_file")
EXAMPLES = """examples:
  preheat serve keys add --file keys.json --name team-a > team-a.secret
  preheat serve keys add --file keys.json --name chat --routes '/v1/chat/*,/v1/models' \\
      --requests-per-minute 60 --tokens-per-minute 20000 --concurrency 4
  preheat serve keys add --file keys.json --name operator --admin
  preheat serve keys list --file keys.json
  preheat serve keys revoke --file keys.json k3j2x9qa

A gateway with PREHEAT_KEYS_FILE=keys.json follows within a second, and need not be told.
Exit status 0 done, 1 failed, 2 usage or a damaged file.
"""
LIMITS = {
    "requests_per_minute": "requests that may begin in a minute",
    "tokens_per_minute": "tokens of prompts and answers in a minute",
    "tokens_per_day": "tokens of prompts and answers in 24 hours",
    "concurrency": "requests at work at once",
}
# A verb, with the file that it is about.
RunOn = Callable[[argparse.Namespace, Path], int]
HEADINGS = ("ID", "NAME", "STATE", "CREATED", "REQ/MIN", "TOK/MIN", "TOK/DAY", "AT ONCE", "ROUTES")


def add(verbs: Any, environ: Mapping[str, str]) -> None:
    """Add ``keys`` and its verbs to a command line; ``environ`` may name the file."""
    sentence = "give out keys to clients, list them, take them back"
    keys = verbs.add_parser(
        "keys",
        help=sentence,
        description=sentence,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = keys.add_subparsers(required=True, metavar="VERB")
    verb = partial(_verb, below, environ)
    _add_options(verb("add", _add, "make a key, and print its secret this one time"))
    verb("list", _list, "print the keys and their limits").add_argument(
        "--json", action="store_true", help="for programs"
    )
    verb("revoke", _revoke, "take a key back; its record stays").add_argument(
        "id", metavar="ID", type=_id, help="as `list` prints it: 8 letters and digits"
    )


def _verb(
    verbs: Any,
    environ: Mapping[str, str],
    name: str,
    run: RunOn,
    sentence: str,
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=sentence, description=sentence)
    made.add_argument("--file", type=Path, metavar="FILE", help=f"the file of keys ({VARIABLE})")
    made.set_defaults(verb=partial(_on_file, run, environ))
    return made


def _on_file(run: RunOn, environ: Mapping[str, str], parsed: argparse.Namespace) -> int:
    return run(parsed, _file(parsed.file, environ))


def _file(said: Path | None, environ: Mapping[str, str]) -> Path:
    # What else the environment says is asked of it only where it is to name the file.
    if path := said or read_settings(environ).keys_file:
        return path
    raise ConfigError("no file of keys is named", f"--file FILE, or {VARIABLE}")


def _id(text: str) -> str:
    """Without what was given, as who pastes a secret here need not see it again."""
    if len(text) != 8 or not text.isalnum():
        raise argparse.ArgumentTypeError("expected the 8 letters and digits of an id")
    return text


def _add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--name", default="", help="a word for people, in logs and lists")
    verb.add_argument(
        "--routes", metavar="LIST", help="paths with *, split at commas; every client route if none"
    )
    for limit, sentence in LIMITS.items():
        option = f"--{limit.replace('_', '-')}"
        verb.add_argument(option, type=positive, metavar="N", help=f"{sentence}; no limit if none")
    verb.add_argument("--admin", action="store_true", help="may use /admin/*")
    verb.add_argument("--json", action="store_true", help="for programs")


def _add(parsed: argparse.Namespace, path: Path) -> int:
    id_, secret = new_secret()
    facts = {name: getattr(parsed, name) for name in ("name", *LIMITS, "admin")}
    facts["routes"] = _routes(parsed.routes)
    record = _record(id=id_, sha256=digest_of(secret), **facts)
    keyring.change(path, lambda records: (*records, record), create=True)
    print(f"key {_called(record)} is in {spoken(str(path))}", file=sys.stderr)
    print("its secret is shown this one time, on standard output:", file=sys.stderr)
    print(json.dumps(_told(record) | {"secret": secret}, indent=2) if parsed.json else secret)
    return 0


def _routes(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    patterns = tuple(word.strip() for word in text.split(","))
    known = [route.path for route in (*FORWARDED, *OWN)]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in known):
            said = f"note: no route fits {pattern!r}{nearest(pattern, known)}"
            print(spoken(said), file=sys.stderr)
    return patterns


def _record(**facts: Any) -> Record:
    try:
        return Record(created=keyring.now(), **facts)
    except ValidationError as error:
        raise ConfigError(f"the key asked for: {keyring.problem(error)}") from None


def _list(parsed: argparse.Namespace, path: Path) -> int:
    records, _ = keyring.as_owner(path)
    if parsed.json:
        print(json.dumps([_told(record) for record in records], indent=2))
        return 0
    rows = [HEADINGS, *map(_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _row(record: Record) -> tuple[str, ...]:
    limits = (record.requests_per_minute, record.tokens_per_minute, record.tokens_per_day)
    state = f"revoked {record.revoked:%Y-%m-%d}" if record.revoked else "in force"
    return (
        record.id,
        record.name or "-",
        state + (", admin" if record.admin else ""),
        f"{record.created:%Y-%m-%d}",
        *("-" if limit is None else str(limit) for limit in (*limits, record.concurrency)),
        ",".join(record.routes or ("all",)),
    )


def _revoke(parsed: argparse.Namespace, path: Path) -> int:
    def revoked(records: Records) -> Records:
        record = _named(records, parsed.id, path)
        gone = record.model_copy(update={"revoked": keyring.now()})
        return tuple(gone if one is record else one for one in records)

    record = _named(keyring.change(path, revoked), parsed.id, path, again=True)
    print(f"key {_called(record)} is revoked in {spoken(str(path))}")
    return 0


def _named(records: Records, id_: str, path: Path, *, again: bool = False) -> Record:
    record = next((record for record in records if record.id == id_), None)
    if record is None:
        hint = f"preheat serve keys list --file {shlex.quote(str(path))}"
        known = [record.id for record in records]
        raise ConfigError(f"{path}: no key {id_}{nearest(id_, known)}", hint)
    if record.revoked and not again:
        raise KeyringError(
            f"{path}: key {_called(record)} was revoked {record.revoked:%Y-%m-%d %H:%M} UTC"
        )
    return record


def _called(record: Record) -> str:
    return f"{record.name} ({record.id})" if record.name else record.id


def _told(record: Record) -> dict[str, Any]:
    """A record for programs: all but the digest."""
    return record.model_dump(mode="json", exclude={"sha256"})
