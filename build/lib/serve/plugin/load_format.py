"""Makes the load format ``preheat`` known to vLLM; what loads is imported when it is asked for.

A plain checkpoint needs none of it, and a blob of raw tensors no numba, which takes most of a
second to import.
"""

from typing import Any

FORMAT = "preheat"


def register() -> None:
    """Safe to call any number of times."""
    from vllm.model_executor import model_loader

    # Not register_model_loader, which wants the class itself, and warns when it is called again.
    model_loader._LOAD_FORMAT_TO_MODEL_LOADER[FORMAT] = _loader


def _loader(load_config: Any) -> Any:
    from serve.plugin.weights import Loader

    return Loader(load_config)
