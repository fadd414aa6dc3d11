"""One worker's part of vLLM without an engine: a model is made and filled, and nothing served.

    python -m serve.plugin.alone '{"model": "…", "meet": "…", "rank": 0, "world": 2, …}'

What ``preheat bake shard`` starts once for each rank, all at once; ``meet`` is a file that none of
them has yet. Tests and measurements load by it, too.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.plugin import register


@dataclass(frozen=True)
class Job:
    """What is loaded, and by which rank. ``drafts``: tokens that MTP drafts; 0 for no drafter."""

    model: str
    load_format: str = "preheat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    drafts: int = 0
    rank: int = 0
    world: int = 1
    meet: str = ""
    max_model_len: int = 512
    language_model_only: bool = False


@contextmanager
def worker(job: Job) -> Iterator[Any]:
    """vLLM's configuration of ``job``, in a process that is the worker of one rank.

    Once in a process: vLLM's groups of ranks are global. ``configured`` then makes further ones.
    """
    # First: it makes torch.accelerator harmless where there is none.
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.platforms import current_platform

    register()
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder, configured(job) as config:
        meet = Path(job.meet or f"{folder}/meet")
        # Names the shared memory of the ranks; vLLM's CPU worker makes it the same way.
        os.environ["VLLM_DIST_IDENT"] = meet.name
        backend = current_platform.dist_backend
        init_distributed_environment(job.world, job.rank, f"file://{meet}", job.rank, backend)
        initialize_model_parallel(job.world, 1)
        try:
            yield config
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()


@contextmanager
def configured(job: Job) -> Iterator[Any]:
    """vLLM's configuration of ``job``, which is then the current one."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model=job.model,
        load_format=job.load_format,
        model_loader_extra_config=dict(job.extra),
        dtype=job.dtype,
        max_model_len=job.max_model_len,
        tensor_parallel_size=job.world,
        distributed_executor_backend="mp",
        enforce_eager=True,
        # Nobody looks on.
        use_tqdm_on_load=False,
        enable_prefix_caching=False,
        language_model_only=job.language_model_only,
        speculative_config=_drafts(job.drafts),
    )
    config = arguments.create_engine_config()
    with set_current_vllm_config(config):
        yield config


def roles(config: Any) -> list[Any]:
    """The model's configuration, and the drafter's where there is one."""
    speculative = config.speculative_config
    drafter = [speculative.draft_model_config] if speculative else []
    return [config.model_config, *drafter]


def fill(config: Any, role: Any) -> tuple[Any, Any]:
    """One of ``roles`` with its weights as they were loaded, before they are post-processed.

    Also the loader. Afterwards vLLM on a CPU has moved every linear layer's weights out of sight.
    """
    with empty(config, role) as (model, loader):
        loader.load_weights(model, role)
    return model, loader


@contextmanager
def empty(config: Any, role: Any) -> Iterator[tuple[Any, Any]]:
    """The model of one of ``roles``, not loaded yet, and the loader that would load it."""
    import torch
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.utils.torch_utils import set_default_torch_dtype

    loader = get_model_loader(config.load_config)
    with set_default_torch_dtype(role.dtype):
        with torch.device(config.device_config.device):
            model = loader.create_model(vllm_config=config, model_config=role)
        yield model, loader


def _drafts(count: int) -> dict[str, Any] | None:
    return {"method": "mtp", "num_speculative_tokens": count} if count else None


def main(arguments: list[str]) -> int:
    """Load, which captures where ``extra`` says so."""
    with worker(Job(**json.loads(arguments[0]))) as config:
        for role in roles(config):
            fill(config, role)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
