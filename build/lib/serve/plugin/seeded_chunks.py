"""Takes back what a seeded request drew for a prompt that is not read to its end yet, on the CPU.

A step samples for every row; where only a part of a prompt was read, the token is discarded. So
that a seed gives one text however its prompt was cut, vLLM 0.32 sets the generator's offset back,
which only a GPU's has: "CPU Generator does not use offset", and the engine dies. Here the whole
state is kept before sampling and put back after it, and the loop that would set offsets finds no
generator.
"""

from typing import Any


def needed() -> bool:
    """Whether this is the CPU build and its runner still sets offsets."""
    import inspect

    import torch

    if torch.version.cuda is not None:
        return False
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    bookkeep = GPUModelRunner._bookkeeping_sync
    return not hasattr(bookkeep, "preheat_wraps") and ".set_offset(" in inspect.getsource(bookkeep)


def apply() -> None:
    """Wrap where a step samples and where it looks at what it sampled."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    GPUModelRunner._sample = restoring(GPUModelRunner._sample)
    GPUModelRunner._bookkeeping_sync = without(GPUModelRunner._bookkeeping_sync)


def restoring(sample: Any) -> Any:
    """``_sample``, after which discarded rows have drawn nothing."""

    def _sample(self: Any, *args: Any, **options: Any) -> Any:
        kept = [(one, one.get_state()) for one in _split(self)[0].values()]
        try:
            return sample(self, *args, **options)
        finally:
            for one, state in kept:
                one.set_state(state)

    _sample.preheat_wraps = sample  # type: ignore[attr-defined]
    return _sample


def without(bookkeep: Any) -> Any:
    """``_bookkeeping_sync``, which does not see the generators of discarded rows."""

    def _bookkeeping_sync(self: Any, *args: Any, **options: Any) -> Any:
        batch, every = self.input_batch, self.input_batch.generators
        batch.generators = _split(self)[1]
        try:
            return bookkeep(self, *args, **options)
        finally:
            # The very dict: sampling metadata and the batch's own moves hold on to it.
            batch.generators = every

    _bookkeeping_sync.preheat_wraps = bookkeep  # type: ignore[attr-defined]
    return _bookkeeping_sync


def _split(runner: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    """Generators by row: of those whose token is discarded, and of all others."""
    discarded = runner.discard_request_mask.np
    both: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    for row, generator in runner.input_batch.generators.items():
        both[0 if discarded[row] else 1][row] = generator
    return both
