"""The paths that clients may reach in the engine. What is not listed does not exist.

From the decorators under ``vllm/entrypoints`` of 0.32. Left out on purpose: the developer,
LoRA, profiler, scaling and abort routes, documentation pages, and whatever a later vLLM adds.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """One path of the engine; ``path`` is a Starlette pattern."""

    path: str
    methods: tuple[str, ...] = ("POST",)


GENERATION = (
    Route("/v1/chat/completions"),
    Route("/v1/chat/completions/batch"),
    Route("/v1/completions"),
    Route("/v1/responses"),
    Route("/v1/responses/{response_id}", ("GET",)),
    Route("/v1/responses/{response_id}/cancel"),
    Route("/v1/messages"),
    Route("/v1/messages/count_tokens"),
)
POOLING = (Route("/v1/embeddings"), Route("/v1/score"), Route("/v1/rerank"))
INFORMATION = (
    Route("/v1/models", ("GET",)),
    Route("/tokenize"),
    Route("/detokenize"),
    Route("/version", ("GET",)),
)
FORWARDED = (*GENERATION, *POOLING, *INFORMATION)
