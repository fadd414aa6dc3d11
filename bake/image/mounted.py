"""Baked roots for weights that no image holds: containers find both in a folder they are given.

    folder/<model>                              the weights
    folder/baked/<target>/<model>/<variant>     what is baked here, as a container looks for it

Where the folder is mounted is in every key of a compile cache, so that it is baked for one place.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker import DockerClient

from bake import tree
from bake.errors import BakeError
from bake.image import bakery, make
from bake.progress import Timer
from serve import manifest
from serve.errors import ConfigError
from serve.model import find_model, load_model

# Of blobs: what is decoded wants numba, which an image has not.
CODEC = "raw"


@dataclass(frozen=True)
class Mounted:
    """Weights in a folder of this machine, and where containers have that folder."""

    model: Path
    mount: str

    def __post_init__(self) -> None:
        if not self.mount.startswith("/") or ".." in self.mount.split("/"):
            raise ConfigError(f"--mount {self.mount}: expected an absolute path, as /opt/models")

    @property
    def folder(self) -> Path:
        """What is mounted."""
        return self.model.parent

    @property
    def served(self) -> str:
        """What ``MODEL`` says of it in a container."""
        return f"{self.mount.rstrip('/')}/{self.model.name}"

    @property
    def options(self) -> dict[str, Any]:
        """For a container that bakes: it reads the weights; what it makes is fetched from it."""
        return {
            "volumes": {str(self.folder): {"bind": self.mount, "mode": "ro"}},
            "environment": {"MODEL": self.served},
        }

    def root(self, target: str, variant: str) -> Path:
        """Where what is baked lies afterwards."""
        return self.folder / "baked" / target / self.model.name / variant


def check(model: Path, mount: str, experiments: Path) -> Mounted:
    """Weights that an image can serve.

    :raises ConfigError: they are none, or damaged, or ``mount`` is no place.
    :raises BakeError: they are stored as an image cannot read them.
    """
    found = load_model(find_model(str(model.absolute()), experiments))
    if found.blob and found.blob.codec != CODEC:
        raise BakeError(
            f"{model}: a blob of {found.blob.codec}, and an image has no numba to decode it with",
            f"pack it with --codec {CODEC}, or serve it from a checkout",
        )
    return Mounted(found.path, mount)


def bake(client: DockerClient, wanted: make.Wanted, given: Mounted, timer: Timer) -> list[Path]:
    """Bake each of the variants for the mounted weights, in a container of the image that bakes.

    :raises BakeError: with the last lines of what failed; what was baked before it stands.
    """
    roots = [given.root(wanted.target.name, variant) for variant in wanted.variants]
    with ExitStack() as held, make.building(client, wanted) as known:
        # Before anything is built: minutes later is late for a folder that takes no file.
        for root in roots:
            take(root, held)
        with timer.phase("build what bakes"):
            baker = make.stage(client, wanted, "baker", known, timer)
        for root in roots:
            with timer.phase(f"bake {root.name}"):
                bakery.bake(client, baker, root, wanted.device, timer.progress, **given.options)
    return roots


def take(root: Path, held: ExitStack) -> None:
    """Be the only maker of ``root``, for as long as ``held`` is.

    :raises BakeError: it cannot be made there, or what stands there is no baked root.
    """
    if root.exists() and not (root / manifest.NAME).is_file():
        raise BakeError(f"{root}: is no baked root, and stands where one goes", tree.AWAY)
    try:
        held.enter_context(tree.locked(root))
    except OSError as error:
        raise BakeError(f"{error.filename}: {error.strerror}") from error
