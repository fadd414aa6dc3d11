"""Which norm stands before which linear layers, by family: where AWQ's scales go. Pure.

AWQ (arXiv 2306.00978, section 3.2) multiplies columns of a matrix and divides what feeds it by the
same numbers, so the model stays as it was. What feeds it is a norm, or the matrix before it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bake.errors import Unsupported
from bake.quantize.linears import LAYER

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
DELTA = tuple(f"linear_attn.in_proj_{part}" for part in ("qkv", "z", "b", "a"))
MLP = ("mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True)
class Family:
    """``offset``: what its norms add to their weight (1 where they multiply by 1 + w). ``readers``:
    what may take the input norm's output; a layer has one of them.
    """

    offset: float
    readers: Sequence[Sequence[str]]


PLAIN = Family(0.0, (ATTENTION,))
FAMILIES: Mapping[str, Family] = {
    "llama": PLAIN,
    "mistral": PLAIN,
    "qwen2": PLAIN,
    "qwen3": PLAIN,
    "qwen3_5": Family(1.0, (ATTENTION, DELTA)),
    "qwen3_5_text": Family(1.0, (ATTENTION, DELTA)),
}


@dataclass(frozen=True)
class Pair:
    """``readers`` take what ``before`` gives: names of weights. ``norm``: before is a norm, whose
    elements are divided; otherwise a matrix, whose rows are.
    """

    before: str
    readers: tuple[str, ...]
    norm: bool


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model.

    :raises Unsupported: it is not known which norm feeds which layer; the message names it.
    """
    kind = str(config.get("model_type", ""))[:60]
    if kind not in FAMILIES:
        raise Unsupported(
            f"model_type {kind!r}: awq knows {', '.join(FAMILIES)}",
            "say --scheme rtn-w4a16, which needs to know nothing of a model",
        )
    return FAMILIES[kind]


def pairs(
    names: Mapping[str, tuple[int, ...]], family: Family, chosen: Collection[str]
) -> dict[str, list[Pair]]:
    """Of each layer (its prefix), in the order of the model: those of which a reader is chosen.

    ``names``: shapes of all tensors.
    """
    found: dict[str, list[Pair]] = {}
    meant = set(chosen)
    prefixes = {match["prefix"] for name in names if (match := LAYER.match(name))}
    for prefix in sorted(prefixes, key=lambda one: int(one.rpartition(".")[2])):
        for pair in _pairs(prefix, names, family):
            if meant.intersection(pair.readers):
                found.setdefault(prefix, []).append(pair)
    return found


def _pairs(prefix: str, names: Mapping[str, tuple[int, ...]], family: Family) -> Iterator[Pair]:
    def there(modules: Sequence[str]) -> tuple[str, ...]:
        listed = (f"{prefix}.{module}.weight" for module in modules)
        return tuple(name for name in listed if name in names)

    for modules in family.readers:
        if readers := there(modules):
            yield Pair(f"{prefix}.input_layernorm.weight", readers, norm=True)
    value, output = f"{prefix}.self_attn.v_proj.weight", f"{prefix}.self_attn.o_proj.weight"
    # With fewer heads of v than of q, one number would have to divide several columns.
    if value in names and output in names and names[value][:1] == names[output][1:]:
        yield Pair(value, (output,), norm=False)
    if readers := there(MLP):
        yield Pair(f"{prefix}.post_attention_layernorm.weight", readers, norm=True)
    up, down = f"{prefix}.mlp.up_proj.weight", f"{prefix}.mlp.down_proj.weight"
    if up in names and down in names:
        yield Pair(up, (down,), norm=False)
