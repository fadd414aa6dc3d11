"""A variant: which levers are on. One folder of ``experiments/`` each.

Owns the vocabulary of levers. Does not know how they become flags (``serve.command``) nor
which hardware can do them (``serve.target``).
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serve.config import CommaSeparated, Config, parse, read_pairs
from serve.errors import ConfigError, nearest

# One MTP layer is run again for each; what a target bears may be less (``serve.target``).
MAX_SPECULATIVE_TOKENS = 7
# That vLLM's kernels for GPUs and CPUs both know.
GROUP_SIZES = (32, 64, 128)


class Variant(Config):
    """The levers of one experiment. A lever that is not set stays as vLLM ships it."""

    name: str = Field(description="Name of the folder; not settable.")
    summary: str = Field(description="One line for tables: what the variant is.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Type of weights and activations."
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest sequence in tokens; the model's own limit when not set."
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Most sequences decoded together in one step."
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Most tokens in one step: the size of a prefill chunk."
    )
    cudagraph_capture_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None, CommaSeparated
    ] = Field(
        None,
        description="Batch sizes in tokens to capture as CUDA graphs, comma separated, ascending. "
        "With MTP each must be a multiple of K+1.",
    )
    enable_prefix_caching: bool = Field(
        True, description="Reuse the KV cache of prompts that begin alike (on in stock vLLM)."
    )
    speculative_method: Literal["mtp"] | None = Field(
        None, description="Drafter of speculative decoding; `mtp` is the checkpoint's own head."
    )
    num_speculative_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_SPECULATIVE_TOKENS,
        description="Tokens drafted a step (K); a target may bear fewer.",
    )
    draft_vocab_size: int | None = Field(
        None,
        ge=512,
        multiple_of=64,
        description="Choose drafts from so many tokens only, those most used; the model's own "
        "`DRAFT_VOCAB_SIZE` goes before it. All tokens verify them, so no text changes by it.",
    )
    weights: Literal["awq-w4a16", "rtn-w4a16"] | None = Field(
        None,
        description="Quantize linears to symmetric INT4, 16-bit activations: by activation-aware "
        "scales (AWQ), or rounded to nearest.",
    )
    weights_targets: Literal["mlp", "linear"] | None = Field(
        None, description="Which linears: those of the MLPs (when not set), or all of them."
    )
    weights_group_size: int | None = Field(
        None, description="Weights that share a scale: 32 (when not set), 64 or 128."
    )
    lm_head: Literal["w4a16"] | None = Field(
        None, description="INT4 output head, in the same groups; a tied one is untied first."
    )
    vocab_size: int | None = Field(
        None,
        ge=512,
        multiple_of=64,
        description="Prune the vocabulary to so many tokens; the model's own "
        "`PRUNED_VOCAB_SIZE` goes before it. Clients keep the original ids.",
    )
    mtp_head: Literal["redistilled"] | None = Field(
        None, description="Draft with the MTP head of weights/heads/ in place of the checkpoint's."
    )
    kv_cache_dtype: Literal["fp8"] | None = Field(
        None, description="Type of the KV cache; that of the activations when not set."
    )
    attention_backend: str | None = Field(
        None,
        pattern=r"^[A-Z_]+$",
        description="Attention kernels by vLLM's name; vLLM's own choice when not set.",
    )
    fuse_qk_norm_rope: bool | None = Field(
        None, description="Fuse the norms of queries and keys with the rotary embedding."
    )
    reasoning_parser: str | None = Field(
        None, pattern=r"^[a-z0-9_]+$", description="vLLM's parser that tells thoughts from answers."
    )
    enable_thinking: bool | None = Field(
        None, description="What chat templates are told of requests that do not say it themselves."
    )
    thinking_token_budget: int | None = Field(
        None,
        ge=0,
        description="Most tokens of thought in chats that name no budget; "
        "asks for REASONING_PARSER.",
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Default repetition penalty of requests that name none; 1 is off.",
    )

    @model_validator(mode="after")
    def _levers_fit_together(self) -> Self:
        if (self.speculative_method is None) != (self.num_speculative_tokens is None):
            raise ValueError("SPECULATIVE_METHOD and NUM_SPECULATIVE_TOKENS go together")
        sizes = self.cudagraph_capture_sizes or ()
        if list(sizes) != sorted(set(sizes)):
            raise ValueError("CUDAGRAPH_CAPTURE_SIZES must ascend without repeats")
        self._check_weights()
        if self.thinking_token_budget is not None and not self.reasoning_parser:
            raise ValueError("THINKING_TOKEN_BUDGET asks for REASONING_PARSER")
        step = (self.num_speculative_tokens or 0) + 1
        if odd := [size for size in sizes if size % step]:
            raise ValueError(
                f"CUDAGRAPH_CAPTURE_SIZES {odd} are no multiples of K+1 = {step}; "
                "vLLM would round them"
            )
        return self

    def _check_weights(self) -> None:
        if self.weights_targets and not self.weights:
            raise ValueError("WEIGHTS_TARGETS asks for WEIGHTS")
        if self.weights_group_size not in (None, *GROUP_SIZES):
            raise ValueError(f"WEIGHTS_GROUP_SIZE is one of {GROUP_SIZES}")
        if self.weights_group_size and not (self.weights or self.lm_head):
            raise ValueError("WEIGHTS_GROUP_SIZE asks for WEIGHTS or LM_HEAD")
        for lever in ("mtp_head", "draft_vocab_size"):
            if getattr(self, lever) and self.speculative_method != "mtp":
                raise ValueError(f"{lever.upper()} asks for SPECULATIVE_METHOD=mtp")

    @property
    def levers(self) -> dict[str, Any]:
        """The levers that are set, as JSON: those that are not set change no digest."""
        return self.model_dump(mode="json", exclude={"name", "summary"}, exclude_none=True)

    @property
    def digest(self) -> str:
        """SHA-256 over the levers, in hex: equal levers, equal digest, whatever the name."""
        canonical = json.dumps(self.levers, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def known_variants(experiments: Path) -> list[str]:
    """Names of the variants that stand in ``experiments``, sorted."""
    return sorted(path.parent.name for path in experiments.glob("*/config.env"))


def load_variant(name: str, experiments: Path) -> Variant:
    """Read ``experiments/<name>/config.env``.

    :raises ConfigError: no such variant (lists those there are), or a bad file.
    """
    known = known_variants(experiments)
    if name not in known:
        raise ConfigError(
            f"no variant {name!r} in {experiments}{nearest(name, known)}",
            f"there are: {', '.join(known) or 'none'}",
        )
    path = experiments / name / "config.env"
    return parse(Variant, read_pairs(path), str(path), name=name)
