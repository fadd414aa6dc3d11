"""Chooses and verifies greedy drafts on the CPU by an argmax as fast as plain decoding's.

PyTorch's CPU ``argmax`` compares value by value: 3.6 ns for each bfloat16 of a vocabulary, 0.8 for
each float32. vLLM 0.32 has an operator of its own, ``greedy_argmax``, and asks it for plain greedy
tokens, but not for drafted ones (K a step) nor for those that verify them (K a sequence). NumPy's
is vectorized too and takes any stride. The ids are the same: bfloat16 fits float32 exactly, and of
equals both take the first, of NaNs too.
"""

from typing import Any


def needed() -> bool:
    """Whether this is the CPU build and the drafter's choice is still vLLM's."""
    import torch

    if torch.version.cuda is not None:
        return False
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    return not hasattr(SpecDecodeBaseProposer._greedy_sample, "preheat_wraps")


def apply() -> None:
    """Wrap the drafter's choice and the rejection sampler's function."""
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    SpecDecodeBaseProposer._greedy_sample = drafting(SpecDecodeBaseProposer._greedy_sample)
    rejection_sampler.rejection_sample = verifying(
        rejection_sampler.rejection_sample, rejection_sampler
    )


def argmax(logits: Any) -> Any:
    """Id of each row's largest value, int64 of shape (rows,); ``logits`` is (rows, vocabulary)."""
    import torch

    return torch.from_numpy(logits.float().numpy().argmax(-1))


def drafting(choose: Any) -> Any:
    """``SpecDecodeBaseProposer._greedy_sample``, where it is an argmax of the model's logits."""

    def _greedy_sample(self: Any, hidden_states: Any) -> Any:
        if self.use_local_argmax_reduction or self.use_heterogeneous_vocab:
            return choose(self, hidden_states)
        return argmax(self.model.compute_logits(hidden_states))

    _greedy_sample.preheat_wraps = choose  # type: ignore[attr-defined]
    return _greedy_sample


def verifying(sample: Any, module: Any) -> Any:
    """``rejection_sample`` for batches of greedy requests only; all others as ever."""

    def rejection_sample(  # noqa: PLR0913 - the function's signature
        draft_token_ids: Any,
        num_draft_tokens: list[int],
        max_spec_len: int,
        cu_num_draft_tokens: Any,
        draft_probs: Any,
        target_logits: Any,
        bonus_token_ids: Any,
        sampling_metadata: Any,
        **options: Any,
    ) -> Any:
        if not sampling_metadata.all_greedy or options.get("synthetic_mode"):
            return sample(
                draft_token_ids,
                num_draft_tokens,
                max_spec_len,
                cu_num_draft_tokens,
                draft_probs,
                target_logits,
                bonus_token_ids,
                sampling_metadata,
                **options,
            )
        output = bonus_token_ids.new_full(
            (len(num_draft_tokens), max_spec_len + 1),
            module.PLACEHOLDER_TOKEN_ID,
            dtype=_int32(),
        )
        module._rejection_greedy_sample(
            output,
            cu_num_draft_tokens,
            draft_token_ids,
            argmax(target_logits),
            bonus_token_ids,
            None,
            max_spec_len,
            None,
            None,
        )
        return output

    rejection_sample.preheat_wraps = sample  # type: ignore[attr-defined]
    return rejection_sample


def _int32() -> Any:
    import torch

    return torch.int32
