"""What a variant makes of a model's weights before they are served, and where that lies.

The same levers of the same model give the same folder name. Making it is ``bake.derive``'s.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve import origin
from serve.errors import ConfigError
from serve.model import ModelSource
from serve.variant import Variant


@dataclass(frozen=True)
class Derivation:
    """The steps in their order; one that is not taken is None or empty.

    ``quantize`` is a scheme of the linears in ``targets``; ``group_size`` is that of ``lm_head``,
    too. ``vocab_size`` is in tokens kept.
    """

    mtp_head: str = ""
    vocab_size: int | None = None
    quantize: Literal["", "awq-w4a16", "rtn-w4a16"] = ""
    targets: Literal["mlp", "linear"] = "mlp"
    group_size: int = 32
    lm_head: str = ""

    @property
    def slug(self) -> str:
        """A folder name that tells every step."""
        steps = [f"mtp-{self.mtp_head}"] if self.mtp_head else []
        steps += [f"v{self.vocab_size}"] if self.vocab_size else []
        steps += [f"{self.quantize}-{self.targets}"] if self.quantize else []
        steps += [f"lmhead-{self.lm_head}"] if self.lm_head else []
        steps += [f"g{self.group_size}"] if self.quantize or self.lm_head else []
        return "_".join(steps)


def derivation(variant: Variant, source: ModelSource) -> Derivation | None:
    """What ``variant`` makes of ``source``; None when it is served as it is.

    A model that nobody made a head for drafts with its own; ``command.fit`` says so.
    """
    size = variant.vocab_size and (source.pruned_vocab_size or variant.vocab_size)
    made = Derivation(
        mtp_head=(variant.mtp_head or "") if source.redistilled_head else "",
        vocab_size=size,
        quantize=variant.weights or "",
        targets=variant.weights_targets or "mlp",
        group_size=variant.weights_group_size or 32,
        lm_head=variant.lm_head or "",
    )
    return made if made.slug else None


def folder_of(made: Derivation, source: ModelSource, root: Path) -> Path:
    """``<root>/<model>/<slug>``."""
    return root / source.own / made.slug


def derived(variant: Variant, source: ModelSource, root: Path) -> ModelSource:
    """The model that ``variant`` serves of ``source``: under the same name, from another folder.

    :raises ConfigError: what lies in that folder was made of another checkpoint.
    """
    made = derivation(variant, source)
    if made is None:
        return source
    folder = folder_of(made, source, root)
    get = f"preheat bake derive {variant.name} --model {shlex.quote(source.asked)}"
    if (told := origin.read(folder)) and (other := origin.other(told, source.path)):
        raise ConfigError(
            f"{folder}: was made of another checkpoint than {source.path} ({other})", get
        )
    return source.model_copy(update={"path": folder, "get": get})
