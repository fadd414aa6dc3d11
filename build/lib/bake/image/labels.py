"""What an image of ours says of itself, as labels; read with care, as anybody can write them.

preheat.device, .target, .model     which it is for
preheat.weights, .code              SHA-256 over the files of a folder
preheat.baked.<variant>             SHA-256 of a baked root's manifest
preheat.served.<variant>            SHA-256 over the weights that it serves
preheat.version.<package>           releases
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

OURS = "preheat."
BAKED = "baked."
SERVED = "served."
ABOUT = ("device", "target", "model")
FOLDERS = ("weights", "code")
# They become parts of paths, here and in the container.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Holds:
    """What is in an image: digests of what was built. ``digests`` by folder, ``baked`` and
    ``served`` (its weights) by variant.
    """

    device: str
    target: str
    model: str
    digests: Mapping[str, str]
    baked: Mapping[str, str]
    served: Mapping[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """Those that are baked in, sorted."""
        return sorted(self.baked)

    def root(self, variant: str) -> str:
        """``<target>/<model>/<variant>``."""
        return f"{self.target}/{self.model}/{variant}"

    def labels(self) -> dict[str, str]:
        """As they are written."""
        baked = {f"{BAKED}{variant}": digest for variant, digest in self.baked.items()}
        served = {f"{SERVED}{variant}": digest for variant, digest in self.served.items()}
        told = {"device": self.device, "target": self.target, "model": self.model}
        every = {**told, **self.digests, **baked, **served}
        return {f"{OURS}{name}": said for name, said in every.items()}


def parse(labels: Mapping[str, str] | None) -> Holds | str:
    """What labels say, or why they are not those of an image of ours."""
    told = {n.removeprefix(OURS): v for n, v in (labels or {}).items() if n.startswith(OURS)}
    baked, served = (
        {n.removeprefix(kind): v for n, v in told.items() if n.startswith(kind)}
        for kind in (BAKED, SERVED)
    )
    digests = {name: told.get(name, "") for name in FOLDERS}
    for name in ABOUT:
        if not NAME.fullmatch(told.get(name, "")):
            return f"not an image of ours: label {OURS}{name} is {told.get(name)!r}"
    if told["device"] not in DEVICES:
        return f"not an image of ours: label {OURS}device is {told['device']!r}"
    if odd := [name for name in baked if not NAME.fullmatch(name)]:
        return f"not an image of ours: label {OURS}{BAKED}{odd[0]}"
    holds = Holds(told["device"], told["target"], told["model"], digests, baked, served)
    for name, digest in holds.labels().items():
        if name.removeprefix(OURS) not in ABOUT and not DIGEST.fullmatch(digest):
            return f"not an image of ours: label {name} is {digest!r}, and no digest"
    return holds
