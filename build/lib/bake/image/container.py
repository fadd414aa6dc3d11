"""Containers that do one thing for a build and are gone afterwards, whatever happens."""

import hashlib
import io
import os
import platform
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from docker import DockerClient
from docker.errors import APIError, ImageNotFound, NotFound
from docker.models.containers import Container

from bake.errors import BakeError
from blob.files import check_path
from serve import manifest

# Which process of which machine made it, so that what a killed one left can be told.
LABEL = "preheat.maker"
REBUILD = "build it again: make build"
# Its name below a folder, SHA-256 in hex, and bytes.
File = tuple[str, str, int]
# As little as an appliance is meant to run with.
SANDBOX: Mapping[str, Any] = {
    "network_mode": "none",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}


@contextmanager
def container(client: DockerClient, image: str, **options: Any) -> Iterator[Container]:
    """A container of ``image``, created and not yet started; removed at the end.

    :raises BakeError: there is no such image.
    """
    try:
        made = client.containers.create(image, labels={LABEL: _maker()}, **SANDBOX, **options)
    except ImageNotFound as error:
        raise BakeError(
            f"no image {image}", "build it first: make build; MODEL says of which model"
        ) from error
    try:
        yield made
    finally:
        made.remove(force=True, v=True)


def sweep(client: DockerClient) -> None:
    """Remove the containers of makers that were killed."""
    for one in client.containers.list(all=True, filters={"label": LABEL}):
        machine, _, pid = one.labels[LABEL].rpartition(":")
        if machine == platform.node() and not Path(f"/proc/{pid}").exists():
            one.remove(force=True, v=True)


def _maker() -> str:
    return f"{platform.node()}:{os.getpid()}"


def start(one: Container) -> None:
    """Start it.

    :raises BakeError: what it is to execute is not in its image, or the engine cannot.
    """
    try:
        one.start()
    except APIError as error:
        raise BakeError(f"its container does not start: {error.explanation}", REBUILD) from error


def end(done: Container) -> int:
    """Its exit status, once it has ended.

    :raises BakeError: the kernel killed it for want of memory.
    """
    status = int(done.wait()["StatusCode"])
    done.reload()
    if done.attrs["State"].get("OOMKilled"):
        raise BakeError(
            "the kernel killed it: it needed more memory than its container may have",
            "give the engine's machine more memory, or take a smaller MODEL",
        )
    return status


def output(client: DockerClient, image: str, command: list[str], **options: Any) -> bytes:
    """What ``command`` prints in a container of ``image``.

    :raises BakeError: it failed; its own words.
    """
    with container(client, image, entrypoint=command[:1], command=command[1:], **options) as one:
        start(one)
        if end(one):
            said = one.logs(stdout=False).decode(errors="replace").strip().splitlines()
            # The last line of a traceback names what it is.
            told = said if said and said[0].startswith("preheat: ") else said[-1:]
            raise BakeError(
                "\n".join(told).removeprefix("preheat: ") or f"{command[0]} failed in {image}"
            )
        return bytes(one.logs(stderr=False))


class _Chunks(io.RawIOBase):
    """The pieces of an iterator as one file to read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; 0 at the end."""
        while not self._left:
            try:
                self._left = next(self._chunks)
            except StopIteration:
                return 0
        taken = self._left[: len(buffer)]
        self._left = self._left[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def fetch(one: Container, path: str, folder: Path) -> None:
    """Copy ``path`` of the container into ``folder``, by its last name.

    :raises BakeError: there is no such path, or the copy is not plain files and folders.
    """
    # Not extractall: its safe form came with Python 3.11.4, and Debian 12 has 3.11.2.
    with _archive(one, path) as archive:
        for member in archive:
            place = folder / check_path(member.name)
            if member.isdir():
                place.mkdir(parents=True)
                continue
            with place.open("xb") as file:
                shutil.copyfileobj(_plain(archive, member, path), file)
            place.chmod(member.mode & 0o777)


def digest(one: Container, path: str) -> str:
    """``sha256:…`` of the file at ``path``, or over all files below it (``over``).

    :raises BakeError: there is no such path, or there are links or devices in it.
    """
    files = list(_files(one, path))
    return f"sha256:{files[0][1]}" if [below for below, *_ in files] == [""] else over(files)


def below(one: Container, path: str) -> list[File]:
    """Every file below ``path``.

    :raises BakeError: as ``digest``.
    """
    return list(_files(one, path))


def over(files: Iterable[File]) -> str:
    """``sha256:…`` over files, in the form of ``serve.manifest``."""
    listed = [
        manifest.Entry(path=path, sha256=sha256, size=size) for path, sha256, size in sorted(files)
    ]
    raw = manifest.dump(manifest.Manifest(files=listed, schema=1))
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _files(one: Container, path: str) -> Iterator[File]:
    with _archive(one, path) as archive:
        for member in archive:
            if not member.isdir():
                content = _plain(archive, member, path)
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
                yield member.name.partition("/")[2], sha256, member.size


def _plain(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> IO[bytes]:
    content = archive.extractfile(member) if member.isreg() else None
    if content is None:
        raise BakeError(f"{member.name} in {path} is no plain file", REBUILD)
    return content


@contextmanager
def _archive(one: Container, path: str) -> Iterator[tarfile.TarFile]:
    """What the engine gives of ``path``, to be read once from front to end."""
    try:
        chunks, _ = one.get_archive(path)
    except NotFound as error:
        raise BakeError(f"the image has no {path}", REBUILD) from error
    try:
        stream = io.BufferedReader(_Chunks(iter(chunks)), 2**20)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive
    except (tarfile.TarError, OSError, ValueError) as error:
        raise BakeError(f"{path} cannot be read out of the image: {error}") from error
    finally:
        # While the engine has something to send, it holds the container's lock: no removal ends.
        for _ in chunks:
            pass
