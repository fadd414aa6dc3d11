"""Keeps no second copy of the logits that verify drafts when nobody asked for log-probabilities.

vLLM 0.32's rejection sampler clones them, (drafted tokens, vocabulary) in float32, before penalties
change them in place: log-probabilities are told of the logits as they were. Without a request for
any, nobody reads the copy; of 8 sequences and 4 drafts over tiny's vocabulary it is 2 MiB a step,
of Qwen3.5's 30 MiB. A sampler that tells processed ones makes no copy: it is taken for one then.
"""

from typing import Any


def needed() -> bool:
    """Whether this is the CPU build and the sampler is still vLLM's."""
    import torch

    if torch.version.cuda is not None:
        return False
    from vllm.v1.sample.rejection_sampler import RejectionSampler

    return not hasattr(RejectionSampler.forward, "preheat_wraps")


def apply() -> None:
    """Wrap the sampler's ``forward``."""
    from vllm.v1.sample.rejection_sampler import RejectionSampler

    RejectionSampler.forward = sparing(RejectionSampler.forward)


def sparing(forward: Any) -> Any:
    """``RejectionSampler.forward`` without the copy, where no request of the batch needs it."""

    def spare(
        self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any
    ) -> Any:
        asked = sampling_metadata.max_num_logprobs is not None
        if asked or sampling_metadata.logprob_token_ids:
            return forward(self, metadata, draft_probs, logits, sampling_metadata)
        was = self.is_processed_logprobs_mode
        self.is_processed_logprobs_mode = True
        try:
            return forward(self, metadata, draft_probs, logits, sampling_metadata)
        finally:
            self.is_processed_logprobs_mode = was

    spare.preheat_wraps = forward  # type: ignore[attr-defined]
    return spare
