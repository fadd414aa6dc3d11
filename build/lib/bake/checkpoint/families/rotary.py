"""How positions turn queries and keys: GGUF's words for it, in a config's.

``rope_freqs.weight`` is Llama 3's scaling worked out, a divisor for each frequency. Its formula
takes the original length and two bounds only as quotients, so it cannot be undone in general: the
values that models are known to have are tried, and nothing else is guessed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.families.metadata import Metadata
from bake.errors import Malformed, Unsupported

# (low_freq_factor, high_freq_factor, original_max_position_embeddings) of Llama 3.1, 3.2, 3.3.
LLAMA3 = (1.0, 4.0, 8192)
# A writer computes in float32 or float64; neighbours of another length differ far more.
CLOSE = 1e-5
YARN = ("yarn_ext_factor", "attn_factor", "yarn_attn_factor", "yarn_log_multiplier", "alpha")


def scaling(metadata: Metadata, theta: float) -> dict[str, Any]:
    """``rope_parameters`` of a config. Without a word on its kind it is linear, as llama.cpp has
    it.

    :raises Unsupported: the kind of scaling is not known here, or some factor of it.
    """
    kind = metadata.text("rope.scaling.type", "linear")
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 1.0))
    plain = {"rope_type": "default", "rope_theta": theta}
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return plain
    if kind == "linear":
        return {**plain, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {**plain, **_yarn(metadata, factor)}
    raise Unsupported(
        f"{metadata.where}: rope.scaling.type {kind!r} is not converted",
        "known: none, linear, yarn, and Llama 3's",
    )


def _yarn(metadata: Metadata, factor: float) -> dict[str, Any]:
    under = metadata.prefix + "rope.scaling."
    if others := [name for name in YARN if metadata.get(f"rope.scaling.{name}") is not None]:
        raise Unsupported(
            f"{metadata.where}: {under}{others[0]} is not converted",
            "of yarn's settings only factor, original_context_length and the betas are",
        )
    made: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.natural(
            "rope.scaling.original_context_length"
        ),
    }
    for key in ("beta_fast", "beta_slow"):
        if metadata.get(f"rope.scaling.yarn_{key}") is not None:
            made[key] = metadata.number(f"rope.scaling.yarn_{key}")
    return made


def of_divisors(where: str, divisors: NDArray[Any], theta: float, width: int) -> dict[str, Any]:
    """What Llama 3's scaling must be to divide frequencies by these, of heads of ``width``.

    :raises Unsupported: it is none that is known.
    :raises Malformed: they are not one for each frequency, or none that divides.
    """
    if divisors.size != width // 2 or not ((divisors >= 1) & (divisors < 1e6)).all():
        raise Malformed(where, f"rope_freqs.weight is no list of {width // 2} divisors")
    factor = round(float(divisors.max()), 4)
    if np.all(divisors == 1):
        return {"rope_type": "default", "rope_theta": theta}
    low, high, length = LLAMA3
    told = llama3(width, theta, factor, low, high, length)
    if not np.allclose(divisors, told, rtol=CLOSE, atol=0):
        raise Unsupported(
            f"{where}: rope_freqs.weight is not Llama 3's scaling by {factor:g}",
            f"known: low_freq_factor {low:g}, high_freq_factor {high:g}, from {length} positions",
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def llama3(  # noqa: PLR0913 - the formula's own
    width: int, theta: float, factor: float, low: float, high: float, length: int
) -> NDArray[np.float64]:
    """Llama 3's divisors (``_compute_llama3_parameters`` of transformers): long waves by the
    factor, short ones not at all, and those between smoothly.
    """
    turns = length * theta ** -(np.arange(0, width, 2) / width) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors
