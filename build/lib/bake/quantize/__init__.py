"""Four-bit weights that stock vLLM serves: round to nearest, or AWQ's search before it.

    corpus ─► calibration ─► search ─► folds ┐
    source ──────────────────────────────────┴─► writing ─► a folder (compressed-tensors)

Why ours and not llm-compressor 0.14, which does the same recipe: it cannot live beside vLLM 0.32
(compressed-tensors 0.19 against 0.17), its AWQ asks for an accelerator (it pins memory), it holds
the whole model in memory, and it runs each block for every point of its grid, where a Gram matrix
of the inputs gives the same error of a layer's output. It knows Qwen3.5 and copies ``mtp.*``, but
keeps 1 + w of its norms in BF16 meanwhile, which rounds every norm by up to a 512th; here they are
divided exactly. ``--by llm-compressor`` calls it, in an environment of its own, as a second
opinion; ``scripts/measure_quantize.py`` holds the two against each other.
"""

from pathlib import Path

from bake.progress import Shown, silent
from bake.quantize.recipe import Recipe
from bake.quantize.report import Report

__all__ = ["Recipe", "Report", "quantize"]


def quantize(
    source: Path,
    folder: Path,
    recipe: Recipe,
    corpus: Path,
    shown: Shown = silent,
) -> Report:
    """Make ``folder``, of ``source`` by ``recipe``; see ``make.quantize``."""
    # NumPy comes with an extra; the command line is there without.
    from bake.quantize.make import quantize as made

    return made(source, folder, recipe, corpus, shown)
