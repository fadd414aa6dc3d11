"""From a checkout to a tagged image, stage by stage; each is skipped whose inputs are the same.

    baker (docker build) ─► roots (baked on the device, or imported) ─► appliance ─► verify ─► tags

Nothing has a name that people use before it is proven. What a stage is made from is hashed by
whoever makes it: images by the engine's builder, baked roots by ``bakery.key_of``.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from docker import DockerClient
from docker.errors import APIError, ImageNotFound

from bake import answer, tree
from bake.errors import BakeError
from bake.image import bakery, build, context, daemon, verify
from bake.image.container import below, container, digest, output, over, sweep
from bake.image.labels import Holds
from bake.image.verify import Verified
from bake.image.weights import digest_of
from bake.progress import Timer
from bake.shipping import Terms
from bake.shipping import receive as unpack
from serve import __version__, identity, manifest
from serve.identity import Rejected
from serve.target import Target

WORK = ".cache/image"
IMPORTED = "imported"
# What the stages leave on an engine's disk: 6 to 8 GB was seen for CPUs; for GPUs, whose wheels are
# six times as large, an estimate. Then for a build that finds most of it done.
FRESH_BYTES = {"cpu": 9 * daemon.GIB, "cuda": 45 * daemon.GIB}
AGAIN_BYTES = 1 * daemon.GIB
# Where wheels are found, as pip is told. Only what a build can reach: no folder of this machine.
INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
# What the image says of each variant, one JSON object after the other.
ASKED = 'for variant in "$@"; do preheat serve check "$variant" --json || exit; done'


@dataclass(frozen=True)
class Wanted:
    """One image: what goes in and what it will be called; ``why`` it is this model.

    ``own`` is the model's folder below ``weights/``; ``weights`` are those that its variants serve.
    """

    repository: Path
    name: str
    model: str
    own: str
    weights: Mapping[str, str]
    target: Target
    variants: tuple[str, ...]
    base: str
    weight_bytes: int
    why: str = ""
    network: str = ""
    archive: Path | None = None
    terms: Terms = field(default_factory=Terms)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: which vLLM goes in."""
        return self.target.device

    @property
    def tag(self) -> str:
        """What it is called once it is proven."""
        return tag(self.name, self.device, self.model)

    def root(self, variant: str) -> str:
        """``<target>/<model>/<variant>``."""
        return f"{self.target.name}/{self.model}/{variant}"


@dataclass(frozen=True)
class Made:
    """An image that stood the test, or that cannot be tested here (``verified`` empty)."""

    image: str
    tag: str
    size: int
    baked: tuple[str, ...]
    verified: tuple[Verified, ...]
    seconds: Mapping[str, float]


def tag(name: str, device: str, model: str) -> str:
    """``<name>:<version>-<device>-<model>``."""
    return f"{name}:{__version__}-{device}-{model}"


def make(client: DockerClient, wanted: Wanted, timer: Timer) -> Made:
    """Build, bake or import, verify and tag.

    :raises BakeError: naming the stage and what stopped it. No tag has moved.
    """
    with building(client, wanted) as known:
        # Before anything is built: a file that is no archive should not show after minutes.
        imported = _imported(wanted, timer) if wanted.archive is not None else {}
        with timer.phase("build what bakes"):
            baker = stage(client, wanted, "baker", known, timer)
            with container(client, baker) as one:
                held = below(one, verify.WEIGHTS)
                digests = {"weights": over(held), "code": digest(one, verify.CODE)}
            served = {one: digest_of(held, folder) for one, folder in wanted.weights.items()}
        if imported:
            roots: dict[str, Path] = imported
            baked: tuple[str, ...] = ()
            said = _checked(client, wanted, baker, imported, timer)
        else:
            roots, baked, said = _baked(client, wanted, baker, served, timer)
        with timer.phase("build the image"):
            labels = _labels(wanted, said, roots, digests, served)
            image = stage(client, wanted, "appliance", known, timer, roots, labels)
        with _unless_proven(client, image):
            verified = _verified(client, wanted, image, known, timer)
        _tag(client, image, wanted.tag)
        tree.remove(wanted.repository / WORK / IMPORTED)
    built = client.images.get(image)
    size = int(built.attrs["Size"])
    return Made(built.id, wanted.tag, size, baked, tuple(verified), timer.seconds)


@contextmanager
def building(client: DockerClient, wanted: Wanted) -> Iterator[daemon.Facts]:
    """Within: the only build of this checkout, on a device that it is for and a disk with room.

    :raises BakeError: another is at work, or what is not as it must be.
    """
    known = daemon.facts(client)
    if wanted.archive is None:
        daemon.check_device(known, wanted.device)
    with tree.locked(wanted.repository / WORK / "build"):
        sweep(client)
        # The weights lie in a layer, and until then in what the builder was sent.
        needed = AGAIN_BYTES if _found(client, wanted.tag) else FRESH_BYTES[wanted.device]
        daemon.check_room(known, needed + 2 * wanted.weight_bytes)
        yield known


def stage(  # noqa: PLR0913 - what, where, and for whom
    client: DockerClient,
    wanted: Wanted,
    name: str,
    known: daemon.Facts,
    timer: Timer,
    roots: Mapping[str, Path] = MappingProxyType({}),
    labels: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The id of one of the Dockerfile's stages, built or found in the builder's cache.

    :raises BakeError: with the step that failed, and its last words.
    """
    arguments = {
        "BASE_IMAGE": wanted.base,
        "TARGET": wanted.device,
        "SERVES": wanted.target.name,
        "MODEL": wanted.model,
        "WEIGHTS": wanted.own,
        **{name: os.environ[name] for name in INDEXES if "://" in os.environ.get(name, "")},
    }
    network = wanted.network or ("default" if known.bridged else "host")
    files = context.files(wanted.repository, sorted(set(wanted.weights.values())), roots)
    # Copied each by its name, whether or not a variant serves what is in it.
    folders = (f"weights/{wanted.own}", "weights/derived")
    recipe = build.Recipe(name, arguments, files, network, labels, folders)
    log = wanted.repository / WORK / f"{name}.log"
    return build.build(client, recipe, log, timer.progress)


def _baked(
    client: DockerClient, wanted: Wanted, baker: str, served: Mapping[str, str], timer: Timer
) -> tuple[dict[str, Path], tuple[str, ...], dict[str, Any]]:
    """Baked roots by name, which of them were made now, and what the image says of itself."""
    with timer.phase("ask it what to bake"):
        told = _told(client, wanted, baker, wanted.variants)
        packages = output(client, baker, ["dpkg-query", "--show"]).decode()
    layers = client.images.get(baker).attrs["RootFS"]["Layers"]
    roots, baked = {}, []
    for variant in wanted.variants:
        name = wanted.root(variant)
        root = wanted.repository / context.BAKED / name
        rest = {"weights": served[variant], "packages": packages}
        key = bakery.key_of(told[variant], layers, rest, wanted.repository)
        if bakery.is_current(root, key):
            timer.progress.say(f"  {variant}: baked before from the same inputs, used again")
        else:
            with timer.phase(f"bake {variant}"):
                bakery.bake(client, baker, root, wanted.device, timer.progress)
                bakery.keep_key(root, key)
            baked.append(variant)
        roots[name] = root
    return roots, tuple(baked), next(iter(told.values()))


def _told(
    client: DockerClient, wanted: Wanted, baker: str, variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The identity that a start of each variant has in the image, by variant."""
    options = {
        "environment": {"PREHEAT_CACHE_POLICY": "off"},
        "device_requests": daemon.devices(wanted.device) if wanted.archive is None else [],
    }
    command = ["sh", "-c", ASKED, "sh", *variants]
    said = output(client, baker, command, **options).decode()
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(said.rstrip()):
        value, at = decoder.raw_decode(said, at + len(said[at:]) - len(said[at:].lstrip()))
        found.append(value["identity"])
    return dict(zip(variants, found, strict=True))


def _imported(wanted: Wanted, timer: Timer) -> dict[str, Path]:
    """The roots of the archive, unpacked and checked, by name."""
    assert wanted.archive is not None  # noqa: S101 - or there is nothing to import
    folder = wanted.repository / WORK / IMPORTED
    tree.remove(folder)
    folder.mkdir(parents=True)
    with timer.phase("unpack and check the caches"):
        arrived = unpack(wanted.archive, folder, wanted.terms)
    roots = {str(root.relative_to(folder)): root for root in arrived.roots}
    check_names(wanted.archive, list(roots), wanted.root("<variant>"), wanted.variants)
    for name, root in roots.items():
        for file in (identity.FILE, answer.FILE):
            if not (root / file).is_file():
                raise BakeError(
                    f"{wanted.archive}: {name} has no {file}", "bake it again: make build there"
                )
    return roots


def check_names(file: Path, names: Sequence[str], form: str, variants: Sequence[str]) -> None:
    """Refuse an archive of roots that are none of ``variants`` under a name like ``form``.

    :raises BakeError: naming the first.
    """
    for name in names:
        variant = name.rpartition("/")[2]
        if name != form.replace("<variant>", variant) or variant not in variants:
            raise BakeError(
                f"{file}: holds {name}; wanted {form}, variants {', '.join(variants)}",
                "say MODEL and TARGET as where it was baked, in a checkout of the same version",
            )


def _checked(
    client: DockerClient, wanted: Wanted, baker: str, imported: Mapping[str, Path], timer: Timer
) -> dict[str, Any]:
    """What the image says of itself, once every imported root is known to fit it.

    :raises BakeError: naming the root, and each factor that differs.
    """
    with timer.phase("ask it whether they fit"):
        told = _told(client, wanted, baker, [root.name for root in imported.values()])
    for name, root in imported.items():
        _check_fits(root, name, told[root.name], wanted)
    return next(iter(told.values()))


def _check_fits(root: Path, name: str, told: Mapping[str, Any], wanted: Wanted) -> None:
    """Refuse a root that the image would not use; whether the device fits, only the device knows.

    :raises BakeError: naming each factor that differs.
    """
    baked = identity.parse((root / identity.FILE).read_bytes())
    here = identity.parse(json.dumps(told).encode()).model_copy(update={"device": baked.device})
    verdict = identity.match(baked, here)
    if isinstance(verdict, Rejected):
        reasons = "".join(f"\n  {reason}" for reason in verdict.reasons)
        raise BakeError(
            f"{wanted.archive}: {name} was baked for another image:{reasons}",
            "bake it in an image of this checkout (make build && make build-export there)",
        )


def _labels(
    wanted: Wanted,
    said: Mapping[str, Any],
    roots: Mapping[str, Path],
    digests: Mapping[str, str],
    served: Mapping[str, str],
) -> dict[str, str]:
    """What the image says of itself: versions and digests."""
    opencontainers = {
        "title": "preheat",
        "description": f"{wanted.model} on vLLM for {wanted.target.name}, compile caches baked",
        "version": __version__,
        "revision": revision(wanted.repository),
        "licenses": "Apache-2.0",
        "base.name": wanted.base,
    }
    holds = Holds(
        wanted.device,
        wanted.target.name,
        wanted.model,
        digests,
        {root.name: _digest(root) for root in roots.values()},
        {root.name: served[root.name] for root in roots.values()},
    )
    return {
        **{f"org.opencontainers.image.{name}": value for name, value in opencontainers.items()},
        **{f"preheat.version.{name}": version for name, version in said["versions"].items()},
        **holds.labels(),
    }


def _digest(root: Path) -> str:
    return f"sha256:{hashlib.sha256(manifest.read(root)).hexdigest()}"


def revision(repository: Path) -> str:
    """The commit that is built, with ``-dirty`` where the checkout differs; empty without git."""
    git = shutil.which("git")
    if git is None:
        return ""
    said = subprocess.run(
        [git, "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip()


def _verified(
    client: DockerClient, wanted: Wanted, image: str, known: daemon.Facts, timer: Timer
) -> list[Verified]:
    if wanted.device == "cuda" and "nvidia" not in known.runtimes:
        with timer.phase("check digests"):
            verify.check_image(client, image)
        timer.progress.say("  not started: no GPU here; verify it where there is one")
        return []
    with timer.phase("verify"):
        holds = verify.check_image(client, image)
        return verify.verify(client, image, holds, holds.variants, timer.progress)


def _tag(client: DockerClient, image: str, name: str) -> None:
    """Give ``image`` its name, and remove what had it, which nobody can name any more."""
    replaced = _found(client, name)
    client.images.get(image).tag(*name.rsplit(":", 1))
    if replaced is not None:
        _remove(client, replaced)


@contextmanager
def _unless_proven(client: DockerClient, image: str) -> Iterator[None]:
    """Within: a failure removes ``image``, which has no name yet."""
    try:
        yield
    except BaseException:
        _remove(client, image)
        raise


def _remove(client: DockerClient, image: str) -> None:
    """Remove an image of ours, unless a name or a container holds it."""
    try:
        if not client.images.get(image).tags:
            client.images.remove(image)
    except APIError as error:
        # Another build has just removed it, or a container runs from it.
        if error.status_code not in (404, 409):
            raise


def _found(client: DockerClient, name: str) -> str | None:
    """The id of the image of that name, if there is one."""
    try:
        return str(client.images.get(name).id)
    except ImageNotFound:
        return None
