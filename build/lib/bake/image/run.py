"""How an image is served on this machine: by which runtime, and by what ``docker run``.

Pure, less ``facts`` which are passed in: what is here decides, and is told.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bake.errors import BakeError
from bake.image.labels import Holds
from bake.image.labels import parse as parse_labels
from bake.image.verify import STOP_SECONDS
from serve.errors import ConfigError
from serve.preflight import is_loopback
from serve.settings import BARE, PREFIX

Runtime = Literal["auto", "local", "docker"]
# Paths of this machine, and what the image sets for itself.
OWN = (
    "PREHEAT_HOST",
    "PREHEAT_EXPERIMENTS",
    "PREHEAT_BAKED_ROOT",
    "PREHEAT_CACHE_ROOT",
    "PREHEAT_KEYS_FILE",
    *BARE,
)
LOOPBACK = "127.0.0.1"
# Any of them says who is let in.
ASKING = ("PREHEAT_KEYS", "PREHEAT_NO_KEYS")
# Where the folder of a file of keys is seen inside: of a file alone a change would not be.
KEYS = "/run/preheat-keys"


@dataclass(frozen=True)
class Asked:
    """What a person wants served; empty means the image's own."""

    variant: str
    model: str
    target: str
    host: str
    port: int


@dataclass(frozen=True)
class Local:
    """From this checkout, and why."""

    reason: str


@dataclass(frozen=True)
class Image:
    """From this image."""

    name: str
    device: str


def parse(word: str) -> Runtime:
    """The runtime that ``word`` names; nothing stands for either.

    :raises ConfigError: it names none.
    """
    match word:
        case "" | "auto":
            return "auto"
        case "local" | "docker":
            return word
    raise ConfigError(f"RUNTIME={word!r}: expected local or docker")


def choose(  # noqa: PLR0913 - each a fact that it decides by
    runtime: Runtime,
    name: str,
    labels: Mapping[str, str] | None,
    why: str,
    asked: Asked,
    weights: Callable[[Holds], str] = lambda _: "",
) -> Local | Image:
    """The runtime to take. ``labels`` are the image's, None where there is none, and ``why``.
    ``weights`` says in what those of an image that would do are not what is served from here.

    :raises BakeError: docker was asked for and cannot be.
    """
    if runtime == "local":
        return Local("RUNTIME=local")
    holds = why if labels is None else parse_labels(labels)
    reason = holds if isinstance(holds, str) else unlike(holds, asked) or weights(holds)
    if isinstance(holds, Holds) and not reason:
        return Image(name, holds.device)
    if runtime == "docker":
        raise BakeError(f"RUNTIME=docker: {reason}", "make build first, or say RUNTIME=local")
    return Local(reason)


def unlike(holds: Holds, asked: Asked) -> str:
    """Why the image is not what was asked for; empty when it is."""
    if asked.variant not in holds.variants:
        return f"the image holds {', '.join(holds.variants) or 'no variant'}, not {asked.variant}"
    for word, wanted in (("model", asked.model), ("target", asked.target)):
        if wanted and wanted != (held := getattr(holds, word)):
            return f"the image holds {word} {held}, not {wanted}"
    return ""


def argv(
    chosen: Image,
    asked: Asked,
    *,
    bridged: bool,
    passed: Sequence[str],
    keys_file: Path | None = None,
) -> list[str]:
    """``docker run`` of ``chosen``: nothing written but /tmp, no privilege, one port.

    ``passed`` are names of variables that go in as they are here.
    """
    words = ["docker", "run", "--rm", "--pull", "never", "--read-only", "--tmpfs", "/tmp"]  # noqa: S108
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    words += ["--stop-timeout", str(STOP_SECONDS), "--env", f"VARIANT={asked.variant}"]
    if chosen.device == "cuda":
        words += ["--gpus", "1"]
    if bridged:
        words += ["--publish", f"{_bracketed(asked.host)}:{asked.port}:8000"]
    else:
        # An engine without a bridge has the host's network or none.
        words += ["--network", "host", "--env", f"PORT={asked.port}"]
        words += ["--env", f"PREHEAT_HOST={asked.host}"]
    if keys_file:
        words += ["--mount", f"type=bind,src={keys_file.parent},dst={KEYS},readonly"]
        words += ["--env", f"PREHEAT_KEYS_FILE={KEYS}/{keys_file.name}"]
    elif bridged and is_loopback(asked.host) and not set(ASKING) & set(passed):
        # Inside it listens on every address; here nobody else can reach its port.
        words += ["--env", "PREHEAT_NO_KEYS=true"]
    for name in passed:
        words += ["--env", name]
    return [*words, chosen.name]


def passed(environ: Mapping[str, str]) -> list[str]:
    """Names of the settings that reach the gateway in the container, sorted."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in OWN)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
