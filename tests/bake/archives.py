"""Archives made by hand, sound and hostile: members as a hand would write them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from backports import zstd

NAME = "cpu/tiny/v"


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = len(content), 0o444, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tarred(
    *members: tuple[tarfile.TarInfo, bytes],
    form: int = tarfile.PAX_FORMAT,
    end: bytes = b"\0" * 1024,
) -> bytes:
    """A tar of members, in any order, with any type; nothing is checked."""
    parts = []
    for info, content in members:
        parts += [info.tobuf(form, "utf-8", "surrogateescape"), content]
        parts.append(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
    return b"".join([*parts, end])


def packed(tar: bytes) -> bytes:
    return zstd.compress(tar)


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.write_bytes(packed(tarred(*members)))
    return path


def of_root(root: Path, name: str = NAME) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members that a sound archive of ``root`` has."""
    return [member(f"{name}/{path}", (root / path).read_bytes()) for path in listed(root)]


def listed(root: Path) -> Iterable[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def unpacked(raw: bytes) -> dict[str, bytes]:
    """What tarfile itself reads in an archive."""
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(raw))) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
