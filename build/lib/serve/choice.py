"""Which model is served, and why that one: the only place that knows the rule.

One that is named goes before all. Else the target's: for variants that draft with the
checkpoint's own MTP head one that has such a head, for all others the target's best.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.target import Target
from serve.variant import Variant

NAMED = "MODEL names it"


@dataclass(frozen=True)
class Choice:
    """``model`` is a name or a path, as ``serve.model.find_model`` takes it."""

    model: str
    why: str


def choose_model(named: str | None, target: Target, variants: Sequence[Variant]) -> Choice:
    """The one model of ``variants``: what cannot do for each of them does for none."""
    if named:
        return Choice(named, NAMED)
    default = f"default of target {target.name}"
    if not target.default_model_with_mtp:
        return Choice(target.default_model, default)
    heads = [variant.name for variant in variants if variant.speculative_method == "mtp"]
    if not heads:
        return Choice(target.default_model, f"{default} for variants without an MTP head")
    which = "" if len(variants) == 1 else f", of which there are: {', '.join(heads)}"
    return Choice(target.default_model_with_mtp, f"{default} for variants with an MTP head{which}")
