"""Which tensors become four bits: from their names, shapes and types. Pure.

vLLM fuses some matrices into one (``qkv_proj``, ``gate_up_proj``, ``in_proj_qkvz``) and asks that
all parts be of one scheme: a set of which one part cannot be packed stays whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bake.errors import BakeError
from bake.quantize.recipe import Recipe

# vLLM's CPUWNA16 takes no others, in either direction.
MULTIPLE = 32
FLOATS = ("BF16", "F16", "F32")
LAYER = re.compile(
    r"^(?P<prefix>(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.\d+)\.(?P<rest>.+)$"
)
# As vLLM 0.32 fuses them: packed_modules_mapping of llama, qwen2, qwen3 and qwen3_5.
FUSED = (
    ("mlp.gate_proj", "mlp.up_proj"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
)
MLP = re.compile(r"(^|\.)(mlp|feed_forward|block_sparse_moe)\.")
# Decay and write strength of GatedDeltaNet: a thousandth of its bytes, and what its state, kept
# over the whole text, is multiplied with. Routers decide more than they weigh.
KEPT = re.compile(r"(in_proj_[ab]|conv1d|(^|\.)gate|shared_expert_gate|router|embed[^.]*)$|norm")
EMBEDDING = re.compile(r"^(model\.)?(language_model\.)?(model\.)?embed_tokens\.weight$")
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Stored:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """``chosen``: names of tensors that are packed, the head apart. ``left``: linear layers that
    the recipe means and that stay, with the reason. ``head``: the tensor the head is made of,
    or nothing.
    """

    chosen: tuple[str, ...]
    left: Mapping[str, str]
    head: str = ""


def select(tensors: Mapping[str, Stored], recipe: Recipe, *, tied: bool) -> Selection:
    """What ``recipe`` means of ``tensors``.

    :raises BakeError: a matrix of the MLP does not go into groups, there is no layer, or no head.
    """
    meant = [name for name in sorted(tensors) if _meant(name, tensors[name], recipe)]
    left = {n: why for n in meant if (why := unfit(tensors[n].shape, recipe.group_size))}
    for name in meant:
        for other in siblings(name):
            if other in left and name not in left:
                left[name] = f"vLLM fuses it with {other}, which stays"
    chosen = tuple(name for name in meant if name not in left)
    # Where half of the MLP stayed, a recipe's name would say what is not so.
    wrong = [name for name in left if MLP.search(name)] or ([] if chosen else [*left, ""])
    if recipe.weights != "none" and wrong:
        name = wrong[0]
        why = left.get(name, "it has no linear layer of a known name")
        raise BakeError(
            f"{name or 'the model'}: {why}", "say another --group-size, or other --targets"
        )
    return Selection(chosen, left, _head(tensors, recipe, tied=tied) if recipe.lm_head else "")


def siblings(name: str) -> tuple[str, ...]:
    """The other tensors that vLLM makes one matrix of with ``name``."""
    found = LAYER.match(name)
    module = found["rest"].removesuffix(".weight") if found else ""
    fused = next((one for one in FUSED if module in one), ())
    prefix = found["prefix"] if found else ""
    return tuple(f"{prefix}.{other}.weight" for other in fused if other != module)


def unfit(shape: tuple[int, ...], group: int) -> str:
    """Why a matrix (out × in) cannot be packed; empty when it can."""
    rows, cols = shape
    if cols % group:
        return f"{cols} columns are no multiple of the group of {group}"
    if rows % MULTIPLE or cols % MULTIPLE:
        return f"{rows} × {cols}: vLLM's kernels ask for multiples of {MULTIPLE}"
    return ""


def _meant(name: str, stored: Stored, recipe: Recipe) -> bool:
    found = LAYER.match(name)
    if not found or recipe.weights == "none" or not name.endswith(".weight"):
        return False
    module = found["rest"].removesuffix(".weight")
    if stored.dtype not in FLOATS or len(stored.shape) != 2 or KEPT.search(module):
        return False
    return recipe.targets == "linear" or MLP.search(module) is not None


def _head(tensors: Mapping[str, Stored], recipe: Recipe, *, tied: bool) -> str:
    embeddings = [name for name in tensors if EMBEDDING.match(name)]
    name = embeddings[0] if tied and embeddings else HEAD
    if name not in tensors or tensors[name].dtype not in FLOATS or len(tensors[name].shape) != 2:
        raise BakeError(f"{name}: not there, so no head can be made of it", "leave --lm-head out")
    if why := unfit(tensors[name].shape, recipe.group_size):
        raise BakeError(f"{name}: {why}", "say another --group-size, or leave --lm-head out")
    return name
