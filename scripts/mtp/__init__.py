"""Re-distilling an MTP head: prompts, the model's own continuations, features, training.

Owns everything behind `scripts.redistill_mtp`, and what measuring drafts takes. The network
and its unrolled steps are those of `scripts.tiny`, which any Qwen3.5 text model fits.
"""
