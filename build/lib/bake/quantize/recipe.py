"""What was asked for. Pure."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bake.errors import BakeError
from serve.variant import GROUP_SIZES

Weights = Literal["awq-w4a16", "rtn-w4a16", "none"]
Targets = Literal["mlp", "linear"]


@dataclass(frozen=True)
class Recipe:
    """``weights``: how numbers are chosen; ``none`` leaves all but the head. ``targets``: the
    MLP's matrices, or all linear layers. ``lm_head``: the head too, untied where it is tied.

    ``samples`` texts of ``sequence`` tokens are what AWQ looks at; ``seed`` picks them.
    """

    weights: Weights = "awq-w4a16"
    targets: Targets = "mlp"
    group_size: int = 32
    lm_head: bool = False
    seed: int = 0
    samples: int = 64
    sequence: int = 512

    def describe(self) -> dict[str, Any]:
        """As a report holds it."""
        return asdict(self)

    @property
    def awq(self) -> bool:
        """Whether a corpus is looked at."""
        return self.weights == "awq-w4a16"


def check(recipe: Recipe) -> None:
    """Whether the recipe can be followed at all.

    :raises BakeError: a word or a number that is not known, or nothing would be done.
    """
    for name, value, known in (
        ("scheme", recipe.weights, get_args(Weights)),
        ("targets", recipe.targets, get_args(Targets)),
        ("group size", recipe.group_size, GROUP_SIZES),
    ):
        if value not in known:
            told = ", ".join(map(str, known))
            raise BakeError(f"{name}: expected one of {told}, got {value!r}", "say another")
    for name, number in (("samples", recipe.samples), ("sequence", recipe.sequence)):
        if number < 1:
            raise BakeError(f"{name}: expected 1 or more, got {number}", "say more")
    if recipe.weights == "none" and not recipe.lm_head:
        raise BakeError("nothing to quantize: no scheme, and no head", "say --lm-head, or a scheme")
