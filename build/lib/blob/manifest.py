"""The manifest of a blob: what stands in it, how, and the digests by which it is proven.

    manifest.json   canonical JSON (``blob.spelling``)
      schema        version of this form
      recipe        what was asked for          encoder   the build that did it
      source        digest of every source file rank      of a per-rank blob: which, of what
      files         config, tokenizer, …: path, size, SHA-256
      shards        safetensors files, named by their SHA-256
      tensors       sorted by name; see ``Tensor``
      fingerprint   SHA-256 over the sorted lines ``name:sha256``: equal weights, equal fingerprint
      digest        SHA-256 over all of the above

A tensor carries two SHA-256: of the bytes it gives back, which are the weights, and of those that
are stored. Its BLAKE3 is of the stored bytes too, and is there because it costs a fourth: a load
hashes what it hands over, and this catches bits that do not reach the weights, such as those of
an empty block. ``seal`` is over the tensor's own entry, so that damage to a manifest can be named.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from blob.dtypes import WIDTH
from blob.errors import BlobError, Damaged
from blob.files import check_name, check_path, digest, opened, printable
from blob.spelling import canonical, strict

SCHEMA: Literal[1] = 1
NAME = "manifest.json"

# A model of a thousand experts has some 10^5 tensors, at about 700 bytes each.
MAX_BYTES = 256 * 1024**2
MAX_TENSORS = 500_000
MAX_RANK = 8
# Bounds under which no product or sum of ours leaves 63 bits.
MAX_DIMENSION = 2**40
MAX_TENSOR_BYTES = 2**44

SHA256 = r"^[0-9a-f]{64}$"
SEAL = r"^[0-9a-f]{16}$"
# In the canonical form: where entries of tensors begin, what parts two, and a name in one.
TENSORS = b'"tensors":['
BETWEEN = b"},{"
NAMED = re.compile(rb'"name":"((?:[^"\\]|\\.)*)"')


def check_dtype(dtype: str) -> str:
    """``dtype`` if it is one of safetensors' that a blob may hold.

    :raises ValueError: it is not.
    """
    if dtype not in WIDTH:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(sorted(WIDTH))}")
    return dtype


def check_file(path: str) -> str:
    """``path`` if a file of a blob that is no shard may lie there.

    :raises ValueError: saying what about it is not allowed.
    """
    if path == NAME or path.endswith(".safetensors"):
        raise ValueError(f"{path} cannot stand among the files")
    return check_path(path)


class Form(BaseModel):
    """Closed and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Dimension = Annotated[int, Field(ge=0, le=MAX_DIMENSION)]
Shape = Annotated[list[Dimension], Field(max_length=MAX_RANK)]
Dtype = Annotated[str, AfterValidator(check_dtype)]
Offset = Annotated[int, Field(ge=0, le=MAX_TENSOR_BYTES)]


class Stored(Form):
    """One array of a tensor in its shard; ``begin`` and ``end`` count from the data's start."""

    dtype: Dtype
    shape: Shape
    begin: Offset
    end: Offset

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


class Tensor(Form):
    """One tensor. ``dtype`` and ``shape`` are those of what it gives back."""

    name: Annotated[str, AfterValidator(check_name)]
    shape: Shape
    dtype: Dtype
    codec: str
    params: dict[str, int]
    shard: str = Field(pattern=SHA256)
    parts: dict[str, Stored]
    sha256: str = Field(pattern=SHA256)
    stored_sha256: str = Field(pattern=SHA256)
    stored_blake3: str = Field(pattern=SHA256)
    seal: str = Field(pattern=SEAL)

    @property
    def size(self) -> int:
        """Bytes of what it gives back."""
        return prod(self.shape) * WIDTH[self.dtype]

    @property
    def stored_size(self) -> int:
        """Bytes of all its parts."""
        return sum(part.size for part in self.parts.values())

    @property
    def rows_and_cols(self) -> tuple[int, int]:
        """The matrix that a codec sees: all dimensions but the last are rows."""
        return (prod(self.shape[:-1]), self.shape[-1]) if self.shape else (1, 1)


class File(Form):
    """A file that is no shard."""

    path: Annotated[str, AfterValidator(check_file)]
    size: Offset
    sha256: str = Field(pattern=SHA256)


class Shard(Form):
    """A safetensors file, ``<sha256>.safetensors``."""

    sha256: str = Field(pattern=SHA256)
    size: Offset

    @property
    def path(self) -> str:
        """Its name in the blob's folder."""
        return f"{self.sha256}.safetensors"


class Rank(Form):
    """Whose slices a per-rank blob holds."""

    rank: int = Field(ge=0)
    world: int = Field(ge=1)
    topology: str
    model: str = Field(pattern=SHA256)


class Manifest(Form):
    """What stands in a blob."""

    version: Literal[1] = Field(SCHEMA, alias="schema")
    recipe: dict[str, str | int]
    encoder: dict[str, str]
    source: dict[str, Annotated[str, Field(pattern=SHA256)]]
    rank: Rank | None
    files: list[File]
    shards: list[Shard]
    tensors: Annotated[list[Tensor], Field(max_length=MAX_TENSORS)]
    fingerprint: str = Field(pattern=SHA256)
    digest: str = Field(pattern=SHA256)

    @property
    def everything(self) -> list[File | Shard]:
        """Every file of the blob but its manifest."""
        return [*self.files, *self.shards]

    @property
    def size(self) -> int:
        """Bytes of all tensors as they are given back."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def stored_size(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.stored_size for tensor in self.tensors)


def sealed(tensor: Mapping[str, Any]) -> Tensor:
    """A tensor's entry with its seal, from all its other fields."""
    return Tensor.model_validate({**tensor, "seal": _seal(tensor)})


def make(**fields: Any) -> Manifest:
    """A manifest with its fingerprint and digest, from all other fields; lists get their order."""
    tree: dict[str, Any] = {
        "schema": SCHEMA,
        "recipe": fields["recipe"],
        "encoder": fields["encoder"],
        "source": fields["source"],
        "rank": _plain(fields["rank"]),
        "files": sorted(map(_plain, fields["files"]), key=lambda file: file["path"]),
        "shards": sorted(map(_plain, fields["shards"]), key=lambda shard: shard["sha256"]),
        "tensors": sorted(map(_plain, fields["tensors"]), key=lambda tensor: tensor["name"]),
    }
    tree["fingerprint"] = fingerprint((t["name"], t["sha256"]) for t in tree["tensors"])
    return Manifest.model_validate({**tree, "digest": hashlib.sha256(canonical(tree)).hexdigest()})


def fingerprint(digests: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the sorted lines ``name:sha256``, without a last newline."""
    lines = sorted(f"{name}:{digest}" for name, digest in digests)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def dump(manifest: Manifest) -> bytes:
    """The one spelling of ``manifest``."""
    return canonical(_plain(manifest))


def is_blob(folder: Path) -> bool:
    """Whether ``folder`` calls itself a blob."""
    return (folder / NAME).is_file()


def read(folder: Path) -> Manifest:
    """The manifest of the blob in ``folder``.

    :raises BlobError: there is none, it cannot be read, or a newer preheat made it.
    :raises Damaged: it is not what was written; the tensor or section is named.
    """
    path = folder / NAME
    try:
        with opened(path) as file:
            raw = file.read(MAX_BYTES + 1) or b""
    except OSError as error:
        raise BlobError(
            f"{path}: cannot be read: {error.strerror}", "is this the folder of a blob?"
        ) from error
    return parse(raw)


def file_fault(folder: Path, listed: File | Shard) -> str:
    """How a file of the blob in ``folder`` differs from its entry; empty when it does not."""
    try:
        sha256, size = digest(folder / listed.path, listed.size)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size != listed.size:
        return f"expected {listed.size} bytes, got {size}"
    if sha256 != listed.sha256:
        return f"sha256 differs (expected {listed.sha256[:12]}…, got {sha256[:12]}…)"
    return ""


def parse(raw: bytes) -> Manifest:
    """The manifest that is spelled ``raw``; nothing is repaired or passed over.

    :raises BlobError: as ``read``.
    """
    if len(raw) > MAX_BYTES:
        raise BlobError(f"{NAME}: larger than {MAX_BYTES} bytes")
    try:
        tree = _tree(raw)
        _check_seals(tree)
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        raise _invalid(error, tree) from error
    except RecursionError as error:
        # Spelling a tree again nests deeper than reading it.
        raise Damaged(NAME, "nested too deep") from error
    if dump(manifest) != raw:
        raise Damaged(NAME, "not in canonical form")
    unsigned = {key: value for key, value in tree.items() if key != "digest"}
    if hashlib.sha256(canonical(unsigned)).hexdigest() != manifest.digest:
        raise Damaged(
            NAME, "its digest is not that of its contents: something but a tensor changed"
        )
    if fingerprint((t.name, t.sha256) for t in manifest.tensors) != manifest.fingerprint:
        raise Damaged(NAME, "fingerprint differs from that of its tensors")
    _check_lists(manifest)
    return manifest


def _plain(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True) if isinstance(model, BaseModel) else model


def _seal(tensor: Mapping[str, Any]) -> str:
    entry = {key: _parts(value) for key, value in tensor.items() if key != "seal"}
    return hashlib.sha256(canonical(entry)).hexdigest()[:16]


def _parts(value: Any) -> Any:
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def _tree(raw: bytes) -> dict[str, Any]:
    try:
        tree = strict(raw)
    except json.JSONDecodeError as error:
        raise Damaged(_near(raw, error.pos), f"not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise Damaged(_near(raw, error.start), "not UTF-8") from error
    except ValueError as error:
        raise Damaged(NAME, str(error)) from error
    if not isinstance(tree, dict):
        raise Damaged(NAME, f"expected an object, got {type(tree).__name__}")
    version = tree.get("schema")
    if isinstance(version, int) and version > SCHEMA:
        raise BlobError(
            f"{NAME}: form {version}, this preheat reads up to {SCHEMA}", "use a newer preheat"
        )
    return tree


def _near(raw: bytes, position: int) -> str:
    """The tensor whose entry holds ``position``."""
    tensors = raw.find(TENSORS)
    if not 0 <= tensors <= position:
        return NAME
    begin = max(tensors, raw.rfind(BETWEEN, tensors, position))
    end = raw.find(BETWEEN, begin + 1)
    named = NAMED.search(raw, begin, end if end > 0 else len(raw))
    return f"{NAME}: {printable(named[1].decode(errors='replace'))}" if named else NAME


def _check_seals(tree: Mapping[str, Any]) -> None:
    """Before any other check, as what it finds says where the damage is."""
    tensors = tree.get("tensors")
    for number, entry in enumerate(tensors if isinstance(tensors, list) else ()):
        if isinstance(entry, dict) and entry.get("seal") != _seal(entry):
            # Not even its name may be what was written.
            where = printable(entry.get("name", f"tensors.{number}"))
            raise Damaged(f"{NAME}: {where}", "its entry is not what was written")


def _invalid(error: ValidationError, tree: Mapping[str, Any]) -> BlobError:
    first = error.errors(include_url=False)[0]
    place = [printable(part) for part in first["loc"]]
    if place[:1] == ["tensors"] and len(place) > 1:
        entry = tree["tensors"][int(place[1])]
        if isinstance(entry, dict) and "name" in entry:
            place[:2] = [printable(entry["name"])]
    return Damaged(f"{NAME}: {'.'.join(place)}", first["msg"])


def _check_lists(manifest: Manifest) -> None:
    for what, keys in (
        ("files", [file.path for file in manifest.files]),
        ("shards", [shard.sha256 for shard in manifest.shards]),
        ("tensors", [tensor.name for tensor in manifest.tensors]),
    ):
        if any(after <= before for before, after in pairwise(keys)):
            raise Damaged(f"{NAME}: {what}", "out of order, or one stands twice")
    known = {shard.sha256 for shard in manifest.shards}
    for tensor in manifest.tensors:
        if tensor.shard not in known:
            raise Damaged(f"{NAME}: {tensor.name}", f"its shard {tensor.shard[:12]}… is not listed")
    if used := known - {tensor.shard for tensor in manifest.tensors}:
        raise Damaged(f"{NAME}: shards", f"no tensor lies in {min(used)[:12]}…")
