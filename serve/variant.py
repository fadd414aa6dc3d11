"""A variant: which levers are on. One folder of ``experiments/`` each.

Owns the vocabulary of levers. Does not know how they become flags (``serve.command``) nor
which hardware can do them (``serve.target``).
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve.config import CommaSeparated, Config, parse, read_pairs
from serve.errors import ConfigError, nearest

# K=5 crashes under load and K=6 with two requests at once, K=4 is stable: vllm#37035, vllm#40756.
MAX_SPECULATIVE_TOKENS = 4


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
        description="Tokens drafted a step (K). K=5 crashes vLLM under load, so 4 is the most.",
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
        step = (self.num_speculative_tokens or 0) + 1
        if odd := [size for size in sizes if size % step]:
            raise ValueError(
                f"CUDAGRAPH_CAPTURE_SIZES {odd} are no multiples of K+1 = {step}; "
                "vLLM would round them"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over the levers, in hex: equal levers, equal digest, whatever the name."""
        levers = self.model_dump(mode="json", exclude={"name", "summary"})
        canonical = json.dumps(levers, sort_keys=True, separators=(",", ":"))
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
