"""Every variable that the gateway reads, each declared once: name, type, default, sentence.

The reference in ``docs/reference.md`` and ``preheat serve env`` are made from this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, Field

from serve.config import Config, parse
from serve.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
PREFIX = "PREHEAT_"
# The few that a person types; all others carry the prefix.
BARE = ("VARIANT", "MODEL", "TARGET", "PORT")


def variable(field: str) -> str:
    """The environment variable of a field."""
    name = field.upper()
    return name if name in BARE else PREFIX + name


class Settings(Config):
    """The gateway's own configuration. Levers of the engine are no settings: see ``Variant``."""

    model_config = ConfigDict(alias_generator=variable)

    variant: str = Field("baseline", description="Which levers are on: a folder of experiments/.")
    model: str | None = Field(
        None,
        description="A name in experiments/models/ or the path of a checkpoint folder; "
        "the target's default for the variant when not set.",
    )
    target: str | None = Field(
        None, description="A name in experiments/targets/; detected when not set."
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    experiments: Path = Field(
        REPOSITORY / "experiments", description="Folder of variants, models and targets."
    )
    cache_root: Path = Field(
        REPOSITORY / ".cache" / "engine",
        description="Folder of compile caches, one below it for each variant.",
    )
    baked_root: Path = Field(
        REPOSITORY / ".cache" / "baked",
        description="Folder of baked compile caches: `<target>/<model>/<variant>` below it.",
    )
    blob_root: Path = Field(
        REPOSITORY / ".cache" / "blobs",
        description="Folder where weight blobs are packed; `store` below it holds what they share.",
    )
    derived_root: Path = Field(
        REPOSITORY / "weights" / "derived",
        description="Folder of what variants make of a model's weights: `<model>/<recipe>` below.",
    )
    cache_policy: Literal["prefer", "require", "off"] = Field(
        "prefer",
        description="A baked cache that is missing or does not fit: start cold and say why "
        "(prefer), or refuse to start (require); off does not look for one.",
    )
    retune: bool = Field(
        False,
        description="Serve from a copy of the baked cache without its autotuned winners, which a "
        "sibling GPU would take over unseen: this one times its own at each start.",
    )
    trusted_keys: str | None = Field(
        None,
        description="Public keys, or a file of them, of which one must have signed a baked cache; "
        "no signature is asked for when not set.",
    )
    start_seconds: float = Field(900, gt=0, description="Longest start of the engine, in seconds.")
    drain_seconds: int = Field(
        30, ge=0, description="At SIGTERM, seconds given to requests in flight."
    )
    stop_seconds: float = Field(
        15, ge=0, description="Seconds between the engine's SIGTERM and its SIGKILL."
    )
    max_restarts: int = Field(
        3, ge=0, description="How often in a row an engine that died is started again."
    )
    hang_seconds: float = Field(
        120,
        ge=0,
        le=240,
        description="Longest silence of an engine that was asked for a token: it is ended and "
        "started again. 0 never asks.",
    )
    keys_file: Path | None = Field(
        None, description="File of keys, made by `preheat serve keys add`; read again when changed."
    )
    keys: str | None = Field(
        None, repr=False, description="Keys, or `sha256:` and their digests, split at commas."
    )
    no_keys: bool = Field(
        False, description="Ask nobody for a key, although others can reach `PREHEAT_HOST`."
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        description="Requests at the engine at once; twice the variant's `MAX_NUM_SEQS` when not "
        "set, or 512.",
    )
    max_queued: int = Field(
        1000, ge=0, description="Requests that wait for their turn; one more is answered 429."
    )
    queue_seconds: float = Field(30, ge=0, description="Longest wait for a turn, in seconds.")
    request_seconds: float | None = Field(
        None,
        gt=0,
        description="Longest time of a request that names none by `X-Request-Timeout`; without "
        "end when not set.",
    )
    max_body_mib: int = Field(64, ge=1, description="Largest request body in MiB.")
    max_held_mib: int = Field(512, ge=1, description="Bodies of all requests together, in MiB.")
    max_connections: int = Field(4096, ge=1, description="Connections of clients at once.")
    stall_seconds: float = Field(
        60, gt=0, description="A client that reads nothing for so long is cut off."
    )
    model_aliases: str | None = Field(
        None,
        description="Other names that requests may call the model by, split at commas.",
    )
    otlp_endpoint: str | None = Field(
        None, description="Base URL of an OTLP/HTTP collector that spans of requests are sent to."
    )
    log_prompts: bool = Field(
        False, description="Log bodies of requests, their first 2,000 characters."
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of log lines.")
    check_memory: bool = Field(
        True, description="Refuse to start when less memory is free than the model needs."
    )


@dataclass(frozen=True)
class Entry:
    """One variable, as the reference shows it."""

    name: str
    type: str
    default: str
    sentence: str


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment; an empty value counts as not set.

    :raises ConfigError: a bad value, or an unknown variable that carries our prefix.
    """
    ours = {
        name: value for name, value in environ.items() if name.startswith(PREFIX) or name in BARE
    }
    for name in ours:
        if (bare := name.removeprefix(PREFIX)) != name and bare in BARE:
            raise ConfigError(f"environment: unknown key {name} (did you mean {bare}?)")
    return parse(Settings, ours, "environment")


def reference() -> list[Entry]:
    """Every variable in the order of declaration."""
    return [
        Entry(
            variable(name),
            type_name(field.annotation),
            _default(field.default),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _default(value: object) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(REPOSITORY))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def type_name(annotation: Any) -> str:
    """A field's type in words: ``int``, ``list of int``, ``a or b``."""
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {type_name(get_args(annotation)[0])}"
    if inner := [kind for kind in get_args(annotation) if kind is not NoneType]:
        return type_name(inner[0])
    return str(annotation.__name__).lower()
