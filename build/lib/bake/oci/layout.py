"""An OCI image layout on the disk, for artifacts that are no container images.

    <layout>/oci-layout                  {"imageLayoutVersion": "1.0.0"}
    <layout>/index.json                  the tags: descriptors of manifests
    <layout>/blobs/sha256/<64 hex>       manifests, configurations and layers, each once

Form and words are of the OCI Image Format Specification 1.1 (image-layout.md, manifest.md): a file
is a layer whose annotation ``org.opencontainers.image.title`` is its path, as ``oras`` writes and
reads it, and the configuration is the empty one. So ``oras cp --from-oci-layout`` and ``skopeo copy
oci:…`` take it to any registry and back.

What is read was written by anybody: every length is bounded before it is read, every digest
compared before the bytes are anyone's. Fields that are not known are passed over, as the
specification asks.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bake.errors import BakeError
from blob.files import check_path, opened, printable, replace, sync
from blob.spelling import strict

VERSION = b'{"imageLayoutVersion":"1.0.0"}'
MANIFEST: Literal["application/vnd.oci.image.manifest.v1+json"] = (
    "application/vnd.oci.image.manifest.v1+json"
)
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
REFERENCE = "org.opencontainers.image.ref.name"
# As the distribution specification has it for tags.
TAG = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
DIGEST = r"^sha256:[0-9a-f]{64}$"
# Registries take manifests of at least 4 MiB (distribution specification, "Pushing Manifests").
MAX_MANIFEST_BYTES = 4 * 1024**2
MAX_FILE_BYTES = 2**44
CHUNK_BYTES = 2**20
# A blob of another writer may stand there already: it is named when it is whole.
ARRIVING = ".arriving-"

# Bytes done, since it was told last.
Progress = Callable[[int], None]
Model = TypeVar("Model", bound=BaseModel)


class BadLayout(BakeError):
    """A layout, or something in it, is not what it says."""


class Descriptor(BaseModel):
    """What a blob is, how large, and what it must hash to."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    media_type: str = Field(alias="mediaType", max_length=255)
    digest: str = Field(pattern=DIGEST)
    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    annotations: Mapping[str, str] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The digest without its algorithm."""
        return self.digest.partition(":")[2]


def _titled(layer: Descriptor) -> Descriptor:
    check_path(layer.annotations.get(TITLE, ""))
    return layer


class Artifact(BaseModel):
    """The manifest of one tag: ``layers`` are files, each with its path for a title."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    version: Literal[2] = Field(alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(
        default=MANIFEST, alias="mediaType"
    )
    kind: str = Field(alias="artifactType", max_length=255)
    config: Descriptor
    layers: Annotated[list[Annotated[Descriptor, AfterValidator(_titled)]], Field(min_length=1)]
    annotations: Mapping[str, str] = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(layer.size for layer in self.layers)


class Version(BaseModel):
    """What ``oci-layout`` holds."""

    version: str = Field(alias="imageLayoutVersion", pattern=r"^1\.")


class Entry(BaseModel):
    """One line of an index, as much of it as tells whose it is; the rest is its writer's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    annotations: Mapping[str, str] = Field(default_factory=dict)

    @property
    def tag(self) -> str:
        """What it is called; nothing that no registry would take."""
        said = self.annotations.get(REFERENCE, "")
        return said if re.fullmatch(TAG, said) else ""


class Index(BaseModel):
    """What a layout holds, ours and others'."""

    model_config = ConfigDict(frozen=True, extra="allow")

    version: Literal[2] = Field(alias="schemaVersion")
    media_type: str = Field(default=INDEX, alias="mediaType")
    manifests: list[Entry] = Field(default_factory=list)

    @property
    def tags(self) -> dict[str, Entry]:
        """What is called something; the rest is nobody's business here."""
        return {one.tag: one for one in sorted(self.manifests, key=lambda one: one.tag) if one.tag}


@dataclass(frozen=True)
class Source:
    """A file to be put: its title, where it lies, what it is known to hold."""

    title: str
    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class Contents:
    """What an artifact is to hold: its kind, the media type of its files, words about it."""

    kind: str
    media_type: str
    files: Sequence[Source]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Put:
    """What a push wrote: bytes of files that were not there yet, of bytes in all."""

    digest: str
    size: int
    new_bytes: int


class Layout:
    """One layout, in the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def tags(self) -> list[str]:
        """Every tag, others' too, sorted.

        :raises BadLayout: there is no layout, or its index is none.
        """
        return list(self._index().tags)

    def descriptor(self, tag: str) -> Descriptor:
        """What the manifest of a tag is.

        :raises BadLayout: there is no such tag, or it is described by what cannot be.
        """
        tags = self._index().tags
        if tag not in tags:
            raise BadLayout(
                f"{self.root}: no tag {printable(tag)}", f"there are: {', '.join(tags) or 'none'}"
            )
        return _valid(Descriptor, tags[tag].model_dump(by_alias=True), f"{self.root}: {tag}")

    def artifact(self, tag: str) -> Artifact:
        """The manifest of a tag.

        :raises BadLayout: there is no such tag, or what it names is no artifact.
        """
        raw = self._small(self.descriptor(tag))
        return _parsed(Artifact, raw, f"{self.root}: {tag}")

    def read(self, layer: Descriptor, progress: Progress) -> Iterator[bytes]:
        """The bytes of a layer, piece by piece; after the last one they are known to be it.

        :raises BadLayout: they are not there, of another length, or of another digest.
        """
        path = self._path(layer.sha256)
        hashed, left = hashlib.sha256(), layer.size
        try:
            with opened(path) as file:
                if (there := os.fstat(file.fileno()).st_size) != layer.size:
                    raise BadLayout(f"{path}: expected {layer.size} bytes, got {there}")
                while left and (piece := file.read(min(CHUNK_BYTES, left))):
                    hashed.update(piece)
                    left -= len(piece)
                    progress(len(piece))
                    yield piece
        except OSError as error:
            raise BadLayout(f"{path}: cannot be read: {error.strerror}") from error
        if left or hashed.hexdigest() != layer.sha256:
            raise BadLayout(f"{path}: sha256 differs from its name", "push it again")

    def put(self, tag: str, contents: Contents, progress: Progress) -> Put:
        """Add files as one artifact and let ``tag`` name it; what is there already stays.

        :raises BakeError: something cannot be written, or a file is not what it was known to be.
        """
        with self._locked():
            self._claim()
        new = 0
        for file in contents.files:
            new += file.size if self._add_file(file, progress) else 0
        config = self._add_bytes(b"{}", EMPTY)
        layers = [
            Descriptor(
                mediaType=contents.media_type,
                digest=f"sha256:{file.sha256}",
                size=file.size,
                annotations={TITLE: file.title},
            )
            for file in contents.files
        ]
        made = Artifact(
            schemaVersion=2,
            artifactType=contents.kind,
            config=config,
            layers=layers,
            annotations=contents.annotations,
        )
        raw = _dumped(made)
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BakeError(
                f"{tag}: its manifest is of {len(raw)} bytes, registries take {MAX_MANIFEST_BYTES}",
                "fewer files: pack it into larger shards",
            )
        described = self._add_bytes(raw, MANIFEST)
        self._name(tag, described.model_copy(update={"annotations": {REFERENCE: tag}}))
        return Put(described.digest, made.size, new)

    def _index(self) -> Index:
        try:
            with opened(self.root / "oci-layout") as file:
                told = file.read(1024) or b""
            with opened(self.root / "index.json") as file:
                raw = file.read(MAX_MANIFEST_BYTES + 1) or b""
        except OSError as error:
            raise BadLayout(
                f"{self.root}: no OCI layout: {Path(error.filename or '').name}: {error.strerror}",
                "push something into it first: preheat bake push FOLDER LAYOUT",
            ) from error
        _parsed(Version, told, f"{self.root}: oci-layout")
        return _parsed(Index, raw, f"{self.root}: index.json")

    def _small(self, described: Descriptor) -> bytes:
        if described.size > MAX_MANIFEST_BYTES:
            raise BadLayout(
                f"{self.root}: a manifest of {described.size} bytes; at most {MAX_MANIFEST_BYTES}"
            )
        return b"".join(self.read(described, lambda _: None))

    def _path(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256

    def _claim(self) -> None:
        """Make a layout of an empty folder, or go on where whoever did that was killed.

        :raises BakeError: somebody else's files stand there.
        """
        try:
            if (self.root / "oci-layout").exists():
                return
            ours = re.compile(r"blobs|index\.json|\.(index\.json|oci-layout)\.\d+")
            others = [p.name for p in self.root.iterdir() if not ours.fullmatch(p.name)]
            if others:
                raise BakeError(
                    f"{self.root}: no OCI layout, and holds {printable(min(others))}",
                    "name an empty folder, or one that does not exist",
                )
            (self.root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            if not (self.root / "index.json").exists():
                replace(self.root / "index.json", _dumped(Index(schemaVersion=2)), 0o644)
            # Last: what has it is a layout.
            replace(self.root / "oci-layout", VERSION, 0o644)
        except OSError as error:
            raise BakeError(f"{self.root}: cannot be written: {error.strerror}") from error

    def _holds(self, sha256: str, size: int) -> bool:
        """Whether the blob is there and whole: one that was damaged is written again."""
        try:
            with opened(self._path(sha256)) as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def _add_file(self, source: Source, progress: Progress) -> bool:
        """Copy a file unless it is there; whether it was copied."""
        if self._holds(source.sha256, source.size):
            progress(source.size)
            return False
        self._write(source.sha256, _pieces(source.path), progress)
        return True

    def _add_bytes(self, raw: bytes, media_type: str) -> Descriptor:
        sha256 = hashlib.sha256(raw).hexdigest()
        if not self._holds(sha256, len(raw)):
            self._write(sha256, iter([raw]), lambda _: None)
        return Descriptor(mediaType=media_type, digest=f"sha256:{sha256}", size=len(raw))

    def _write(self, sha256: str, pieces: Iterator[bytes], progress: Progress) -> None:
        folder = self.root / "blobs" / "sha256"
        hashed = hashlib.sha256()
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=ARRIVING, delete=False) as file:
                part = Path(file.name)
                try:
                    for piece in pieces:
                        hashed.update(piece)
                        file.write(piece)
                        progress(len(piece))
                    file.flush()
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                    if hashed.hexdigest() != sha256:
                        raise BakeError(
                            f"a file is no longer what it was proven to be (sha256 {sha256[:12]}…)",
                            "leave it alone while it is pushed",
                        )
                    part.replace(self._path(sha256))
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
            sync(folder)
        except OSError as error:
            raise BakeError(f"{folder}: cannot be written: {error.strerror}") from error

    def _name(self, tag: str, described: Descriptor) -> None:
        """Let ``tag`` name a manifest, and whatever it named before go."""
        with self._locked():
            index = self._index()
            others = [one for one in index.manifests if one.tag != tag]
            entry = Entry.model_validate(described.model_dump(mode="json", by_alias=True))
            named = index.model_copy(update={"manifests": [*others, entry]})
            raw = _dumped(named)
            if len(raw) > MAX_MANIFEST_BYTES:
                raise BakeError(f"{self.root}: too many tags for one layout", "begin another")
            try:
                replace(self.root / "index.json", raw, 0o644)
            except OSError as error:
                raise BakeError(f"{self.root}: cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two that push at once name one after the other. The lock is on the folder: a file of our
        own has no place in a layout.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BakeError(f"{self.root}: cannot be made: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise BakeError(f"{self.root}: cannot be locked: {error.strerror}") from error
            yield
        finally:
            os.close(descriptor)


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes.

    :raises BakeError: it cannot be read.
    """
    try:
        with opened(path) as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece
    except OSError as error:
        raise BakeError(f"{path}: cannot be read: {error.strerror}") from error


def _dumped(model: BaseModel) -> bytes:
    told: dict[str, Any] = model.model_dump(mode="json", by_alias=True)
    return json.dumps(_without_empty(told), sort_keys=True, separators=(",", ":")).encode()


def _without_empty(told: Any) -> Any:
    """Without annotations that annotate nothing: the specification has none rather than no keys."""
    if isinstance(told, dict):
        kept = {k: v for k, v in told.items() if not (k == "annotations" and not v)}
        return {key: _without_empty(value) for key, value in kept.items()}
    return [_without_empty(one) for one in told] if isinstance(told, list) else told


def _parsed(model: type[Model], raw: bytes, where: str) -> Model:
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BadLayout(f"{where}: larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        told = strict(raw)
    except (ValueError, RecursionError) as error:
        raise BadLayout(f"{where}: {printable(error)}") from error
    return _valid(model, told, where)


def _valid(model: type[Model], told: Any, where: str) -> Model:
    try:
        return model.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise BadLayout(f"{where}: {printable(at)}: {first['msg']}") from error
