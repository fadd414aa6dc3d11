"""Lets a thought that ends by itself among a step's drafts end once, and where it would without.

With drafts, vLLM 0.32 forces the end of a thought as soon as the drafts of a step reach past its
budget, without a look at what they are. Where the end is among those that still fit, it is
accepted, and forced once more right after: the answer begins with a second ``</think>``, and goes
on otherwise than it would without drafts.
"""

from collections.abc import Callable, Sequence
from typing import Any


def needed() -> bool:
    """Whether thoughts are still counted by vLLM's own function."""
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

    return not hasattr(Holder._update_think_state, "before")


def apply() -> None:
    """Look at the drafts after vLLM has decided to force an end."""
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

    Holder._update_think_state = looking(Holder._update_think_state)


def looking(before: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, dict[str, Any]], None]:
    """``before``, and then the end is not forced where the drafts bring it themselves."""

    def updated(self: Any, state: dict[str, Any]) -> None:
        before(self, state)
        if state["in_end"] and state["end_count"] == 0 and state["force_index"]:
            drafts = state["spec_token_ids"][: state["force_index"][0]]
            if holds(drafts, self.think_end_token_ids):
                # As in a step within the budget: a draft that is rejected before the end leaves
                # as much of it as there was.
                left = max(0, state["thinking_token_budget"] - state["think_count"])
                state.update(in_end=False, in_think=True, force_index=[], check_count_down=left)

    updated.before = before  # type: ignore[attr-defined]
    return updated


def holds(tokens: Sequence[int], end: Sequence[int]) -> bool:
    """Whether ``end``, one token or more, stands in ``tokens`` as a whole.

    One of several tokens that only begins there, and would go on past the cap, is forced from its
    first token all the same: it would be said one and a half times. Qwen's end is one token.
    """
    size = len(end)
    return any(list(tokens[at : at + size]) == list(end) for at in range(len(tokens) - size + 1))
