"""The file of keys: what is refused, how it is told, and what a writer leaves."""

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve import keyring
from serve.errors import ConfigError
from serve.keyring import KeyringError, Record, change, dump, parse, read
from serve.keys import Keys
from tests.serve.keyrings import Clock, fields, made, spelled, written

STRANGER = 4321
SECRET = "ph-k3j2x9qa-a-secret-that-somebody-pasted"


def refusal(raw: bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(raw, "keys.json")
    said = str(refused.value)
    assert "\n" not in said
    return said.removeprefix("keys.json: ")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"id": "short"}, "keys.0.id: String should match pattern"),
        ({"id": "K3J2X9QA"}, "keys.0.id: String should match pattern"),
        ({"sha256": SECRET}, "keys.0.sha256: String should match pattern"),
        ({"name": "a\nb"}, "keys.0.name: holds a character that cannot be printed"),
        ({"name": "a" * 65}, "keys.0.name: String should have at most 64 characters"),
        ({"created": "2026-11-22"}, "keys.0.created: Input should be a valid datetime"),
        ({"created": "2026-11-22T08:00:00"}, "keys.0.created: Input should have timezone"),
        ({"created": "2026-11-22T08:00:00+01:00"}, "keys.0.created: is not UTC: 2026"),
        ({"created": 1764000000}, "keys.0.created: Input should be a valid datetime"),
        ({"revoked": True}, "keys.0.revoked: Input should be a valid datetime"),
        ({"routes": []}, "keys.0.routes: Tuple should have at least 1 item"),
        ({"routes": "/v1/models"}, "keys.0.routes: Input should be a valid array"),
        ({"routes": ["v1/models"]}, "keys.0.routes.0: String should match pattern"),
        ({"routes": ["/v1/a b"]}, "keys.0.routes.0: String should match pattern"),
        ({"requests_per_minute": 0}, "keys.0.requests_per_minute: Input should be greater"),
        ({"tokens_per_minute": -1}, "keys.0.tokens_per_minute: Input should be greater"),
        ({"tokens_per_day": 1.5}, "keys.0.tokens_per_day: Input should be a valid integer"),
        ({"concurrency": "4"}, "keys.0.concurrency: Input should be a valid integer"),
        ({"concurrency": True}, "keys.0.concurrency: Input should be a valid integer"),
        ({"admin": 1}, "keys.0.admin: Input should be a valid boolean"),
        ({"request_per_minute": 1}, "keys.0.request_per_minute: Extra inputs are not"),
    ],
)
def test_a_key_with_a_field_that_is_not_understood_is_refused(
    changed: dict[str, Any], said: str
) -> None:
    assert refusal(spelled(fields(**changed))).startswith(said)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b'{"schema_version": 1,\n"keys": [}', "Expecting value: line 2 column 10"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0"),
        (b"[]", "Input should be an object"),
        (b"null", "Input should be an object"),
        (b"{}", "schema_version: Field required"),
        (b'{"schema_version": 1}', "keys: Field required"),
        (spelled(schema_version=2), "schema_version: Input should be 1"),
        (spelled(keys={}), "keys: Input should be a valid array"),
        (spelled(comment=1), "comment: Extra inputs are not permitted"),
        (spelled({}), "keys.0.id: Field required"),
        (spelled(fields(), fields()), "keys.1: id k3j2x9qa stands twice"),
        (b'{"schema_version": 1, "keys": [], "keys": []}', "a key stands twice"),
        (b"[" * 10**6, "maximum recursion depth exceeded"),
        (spelled(*[fields()] * (keyring.MAX_KEYS + 1)), "keys: Tuple should have at most 10000"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_place(raw: bytes, said: str) -> None:
    assert refusal(raw).startswith(said)


@pytest.mark.parametrize(
    "raw",
    [
        spelled(fields(sha256=SECRET)),
        spelled(fields(id=SECRET)),
        spelled(fields(created=SECRET)),
        spelled(fields(routes=[SECRET])),
        spelled(fields(admin=SECRET)),
        spelled(fields(**{SECRET: 1})),
        spelled(SECRET),
        spelled(**{SECRET: 1}),
        json.dumps(SECRET).encode(),
        SECRET.encode(),
        spelled(fields(name=SECRET))[:-20],
    ],
)
def test_a_secret_in_the_wrong_place_is_told_to_nobody(raw: bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(raw, "keys.json")
    told = "".join(traceback.format_exception(refused.value))
    assert SECRET not in told
    assert SECRET[12:] not in told


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=64)
COUNTS = st.none() | st.integers(1, 10**15)
PATTERNS = st.from_regex(r"[/*][!-~]{0,30}", fullmatch=True)
RECORDS = st.builds(
    Record,
    id=st.from_regex(r"[a-z0-9]{8}", fullmatch=True),
    name=NAMES,
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    created=st.just(keyring.now()),
    revoked=st.none() | st.just(keyring.now()),
    routes=st.none() | st.lists(PATTERNS, min_size=1, max_size=4).map(tuple),
    requests_per_minute=COUNTS,
    tokens_per_minute=COUNTS,
    tokens_per_day=COUNTS,
    concurrency=COUNTS,
    admin=st.booleans(),
)


@given(st.lists(RECORDS, max_size=5, unique_by=lambda record: record.id).map(tuple))
def test_keys_that_were_written_are_read_back(records: tuple[Record, ...]) -> None:
    assert parse(dump(records), "") == records


@given(st.binary(max_size=40), st.integers(0, 150), st.integers(0, 150))
def test_any_bytes_are_keys_or_a_refusal(raw: bytes, begin: int, end: int) -> None:
    good = spelled(fields())
    for damaged in (raw, good[:begin] + raw + good[end:]):
        with contextlib.suppress(ConfigError):
            parse(damaged, "")


def test_what_a_key_does_not_have_is_left_out_of_the_file() -> None:
    record, _ = made(name="Jürgen", concurrency=4)
    (key,) = json.loads(dump((record,)))["keys"]
    assert sorted(key) == ["concurrency", "created", "id", "name", "sha256"]
    assert "Jürgen" in dump((record,)).decode()


def file_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read(path)
    return str(refused.value).replace(str(path), "F")


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o620, f"can be written by group {os.getegid()}"),
        (0o602, "can be written by everybody"),
        (0o666, "can be written by everybody"),
    ],
)
def test_a_file_that_others_can_write_is_refused_with_what_to_type(
    tmp_path: Path, mode: int, why: str
) -> None:
    path = written(tmp_path / "keys.json")
    path.chmod(mode)
    said = f"F: {why}, who could give out keys of their own\nhint: chmod go-w F"
    assert file_refusal(path) == said
    with pytest.raises(ConfigError, match="hint: chmod go-w"):
        change(path, lambda records: records)


def test_a_file_that_others_can_read_is_taken_as_it_holds_no_secret(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json")
    path.chmod(0o644)
    assert read(path)[0] == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_refused_by_a_gateway_but_changed_by_root(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "keys.json")
    os.chown(path, STRANGER, STRANGER)
    path.chmod(0o640)
    assert file_refusal(path).startswith(f"F: belongs to uid {STRANGER}, neither root nor us")
    record, _ = made()
    change(path, lambda records: (*records, record))
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (STRANGER, STRANGER)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert keyring.as_owner(path)[0] == (record,)


# Another user only when all is imported: the interpreter may be root's alone.
AS_STRANGER = """
import os, sys
from pathlib import Path
from serve.keyring import KeyringError, change
os.setuid(int(sys.argv[2]))
try:
    change(Path(sys.argv[1]), lambda records: records)
except KeyringError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_who_cannot_keep_a_files_owner_changes_nothing() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = written(folder / "keys.json", made()[0])
        path.chmod(0o644)
        os.chown(folder, STRANGER, STRANGER)
        before = path.read_bytes()
        command = [sys.executable, "-c", AS_STRANGER, str(path), str(STRANGER)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{path}: cannot be written: Operation not permitted\n"
        assert (path.read_bytes(), path.stat().st_uid) == (before, 0)
        names = sorted(one.name for one in folder.iterdir())
        assert names == [".keys.json.preheat.lock", "keys.json"]


def test_a_folder_a_pipe_and_nothing_are_no_files_of_keys(tmp_path: Path) -> None:
    assert file_refusal(tmp_path) == "F: cannot be read: Is a directory"
    os.mkfifo(tmp_path / "pipe")
    assert file_refusal(tmp_path / "pipe") == "F: not a plain file"
    said = "F: cannot be read: No such file or directory\nhint: preheat serve keys add --file F"
    assert file_refusal(tmp_path / "nothing") == said
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in file_refusal(tmp_path / "loop")
    with pytest.raises(ConfigError, match="leads nowhere"):
        change(tmp_path / "loop", lambda records: records)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json")
    os.truncate(path, keyring.MAX_BYTES + 1)
    assert file_refusal(path) == f"F: larger than {keyring.MAX_BYTES} bytes"


def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = made()[0], made()[0]
    change(path, lambda records: (*records, first), create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    change(path, lambda records: (*records, second))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert read(path)[0] == (first, second)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == [".keys.json.preheat.lock", "keys.json"]


def test_a_link_stays_one_and_what_it_leads_to_is_changed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    path = written(tmp_path / "far" / "keys.json")
    link = tmp_path / "keys.json"
    link.symlink_to(path)
    change(link, lambda records: (*records, made()[0]))
    assert link.is_symlink()
    assert len(read(path)[0]) == 1


def test_a_file_is_made_only_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        change(tmp_path / "keys.json", lambda records: records)
    with pytest.raises(ConfigError, match="no such folder"):
        change(tmp_path / "nowhere" / "keys.json", lambda records: records, create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json")
    path.write_bytes(b'{"schema_version": 1, "keys": [')
    with pytest.raises(ConfigError, match="line 1 column 32"):
        change(path, lambda _: (), create=True)
    assert path.read_bytes() == b'{"schema_version": 1, "keys": ['


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json", made()[0])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="stands twice"):
        change(path, lambda records: (*records, *records))
    assert path.read_bytes() == before


def test_a_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    # Read-only for root too.
    with pytest.raises(KeyringError, match=r"^/sys/keys\.json: cannot be written: "):
        change(Path("/sys/keys.json"), lambda records: records, create=True)


LIMITED = """
import resource, sys
from pathlib import Path
from serve.keyring import KeyringError, change
from tests.serve.keyrings import made
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
try:
    change(Path(sys.argv[1]), lambda records: (*records, made(name="x" * 60)[0]))
except KeyringError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_loses_no_key(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json", made()[0])
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == before
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == [".keys.json.preheat.lock", "keys.json"]


WRITER = """
import sys
from pathlib import Path
from serve.keyring import change
from tests.serve.keyrings import made
sys.stdin.read(1)
for _ in range(10):
    record, _ = made()
    change(Path(sys.argv[1]), lambda records: (*records, record), create=True)
    print(record.id, flush=True)
"""


def test_of_many_writers_at_once_none_loses_what_another_wrote(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as held:
        writers = [held.enter_context(subprocess.Popen(command, **pipes)) for _ in range(4)]
        for writer in writers:
            writer.stdin.write("g")
            writer.stdin.flush()
        said = [writer.communicate()[0].split() for writer in writers]
    ids = [id_ for one in said for id_ in one]
    assert len(ids) == 40
    assert sorted(ids) == sorted(record.id for record in read(path)[0])


def test_a_writer_that_is_killed_holds_nobody_up_and_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    told: set[str] = set()
    for lines in (1, 3, 5):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer:
            writer.stdin.write("g")
            writer.stdin.flush()
            told |= {writer.stdout.readline().strip() for _ in range(lines)}
            writer.kill()
        assert told <= {record.id for record in read(path)[0]}
    change(path, lambda records: records)


def test_a_reader_always_sees_a_whole_file(tmp_path: Path) -> None:
    record, secret = made()
    path = written(tmp_path / "keys.json", record)
    keys, stop = Keys(path, clock=Clock()), threading.Event()
    others = [made(name="x" * 60)[0] for _ in range(50)]

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            written(path, record, *others[: number % 50])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(500):
            assert keys.find(secret)
            assert keys.fault == ""
    finally:
        stop.set()
        writer.join()
