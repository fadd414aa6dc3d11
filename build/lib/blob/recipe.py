"""A recipe: which codec each tensor of a model gets. Pure: from its name, type and shape.

A matrix that its codec cannot hold (columns that are no multiple of the block) gets the next of
its fallbacks, and the choice says why; what is no linear layer stays as it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blob.codecs import ByteCodec, RowCodec
from blob.errors import BlobError
from blob.names import CODECS, GROUPS, Targets
from blob.registry import codec_of

# llama.cpp's way with rows that are no multiple of 256: the codec of blocks of 32.
FALLBACK: Mapping[str, Sequence[str]] = {
    "q4_k": ("q8_0",),
    "q5_k": ("q8_0",),
    "q6_k": ("q8_0",),
}
# vLLM's CPUWNA16 refuses others; Marlin asks for 64.
INT4_ROWS = 32
FLOATS = ("BF16", "F16", "F32")
# Matrices that are no linear layer, or one that decides more than it weighs: a router.
# A projection of an embedding is one, and so are those of a block that is called after its
# convolution (LFM2's ``conv.in_proj``).
NOT_LINEAR = re.compile(
    r"embed(?![^.]*(proj|mapping))[^.]*\.weight$|conv[^.]*\.weight$"
    r"|(^|\.)(wte|wpe|shared|relative_attention_bias)\.|norm|router"
    r"|(^|\.)(gate|shared_expert_gate)\.weight$"
)
# Experts in one tensor: under that name, or as GraniteMoe and JetMoe call them.
EXPERTS = re.compile(r"(^|\.)experts(\.|$)|(^|\.)(input|output)_linear\.weight$")
MLP = re.compile(r"(^|\.)(mlp|feed_forward|ffn|block_sparse_moe|experts)\.")
OUTER = re.compile(
    r"(^|\.)(lm_head|generator_lm_head|embed_tokens|embed_out|wte|word_embeddings"
    r"|(lm_head|predictions)\.decoder)(\.weight)?$"
)


@dataclass(frozen=True)
class Recipe:
    """What was asked for. ``targets``: matrices of the MLP, of all linears, or also the head."""

    codec: str
    group: int | None = None
    targets: Targets = "linears"

    def params(self) -> dict[str, int]:
        """Of its codec.

        :raises BlobError: a group for a codec that takes none.
        """
        if self.codec in GROUPS:
            return {"group": GROUPS[self.codec] if self.group is None else self.group}
        if self.group is not None:
            raise BlobError(f"codec {self.codec} takes no group", f"with: {', '.join(GROUPS)}")
        return {}

    def describe(self) -> dict[str, str | int]:
        """As a manifest holds it."""
        return {"codec": self.codec, "targets": self.targets, **self.params()}


@dataclass(frozen=True)
class Choice:
    """The codec of one tensor; ``why`` when it is not the recipe's."""

    codec: RowCodec | ByteCodec
    params: Mapping[str, int] = field(default_factory=dict)
    why: str = ""


def check(recipe: Recipe) -> None:
    """Whether the recipe can be followed at all.

    :raises BlobError: unknown codec, or parameters it does not take.
    """
    if recipe.codec not in CODECS:
        raise BlobError(f"unknown codec {recipe.codec!r}", f"known: {', '.join(CODECS)}")
    codec_of(recipe.codec, recipe.params(), "recipe")


def choose(name: str, shape: Sequence[int], dtype: str, recipe: Recipe) -> Choice:
    """The codec of the tensor ``name``.

    :raises BlobError: as ``check``.
    """
    wanted = codec_of(recipe.codec, recipe.params(), "recipe")
    if not isinstance(wanted, RowCodec):
        return _lossless(wanted, dtype)
    if not _meant(name, shape, dtype, recipe.targets):
        return Choice(codec_of("raw", {}, name))
    columns = shape[-1]
    if wanted.name == "int4" and (why := _not_int4(shape)):
        return Choice(codec_of("raw", {}, name), {}, f"{why}: raw")
    if columns % wanted.block == 0:
        return Choice(wanted, recipe.params())
    why = f"{columns} columns are no multiple of {wanted.block}"
    for other in FALLBACK.get(recipe.codec, ()):
        codec = codec_of(other, {}, name)
        if isinstance(codec, RowCodec) and columns % codec.block == 0:
            return Choice(codec, {}, f"{why}: {other}")
    return Choice(codec_of("raw", {}, name), {}, f"{why}: raw")


def _not_int4(shape: Sequence[int]) -> str:
    """Why vLLM could not take a matrix packed; empty when it can."""
    if len(shape) > 2:
        return "vLLM takes fused experts packed in another layout"
    if shape[0] % INT4_ROWS:
        return f"{shape[0]} rows are no multiple of {INT4_ROWS}, which its kernel asks for"
    return ""


def _lossless(codec: ByteCodec, dtype: str) -> Choice:
    # zipnn splits exponents from mantissas: it is made for floats.
    if codec.name == "raw" or dtype in FLOATS:
        return Choice(codec)
    return Choice(codec_of("raw", {}, codec.name))


def _meant(name: str, shape: Sequence[int], dtype: str, targets: Targets) -> bool:
    if dtype not in FLOATS or len(shape) < 2 or 0 in shape:
        return False
    if OUTER.search(name):
        return targets == "all"
    # Three dimensions are experts in one tensor, or something that is no matrix.
    experts = len(shape) == 3 and EXPERTS.search(name) is not None
    weight = experts or (len(shape) == 2 and name.endswith(".weight"))
    linear = weight and NOT_LINEAR.search(name) is None
    return linear and (targets != "mlp" or MLP.search(name) is not None)
