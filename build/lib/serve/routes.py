"""The paths that clients may reach in the engine. What is not listed does not exist.

From the decorators under ``vllm/entrypoints`` of 0.32. Left out on purpose: the developer,
LoRA, profiler, scaling and abort routes, documentation pages, what ``--enable-scale-out`` opens,
the WebSocket ``/v1/realtime``, and whatever a later vLLM adds. Which of the others an engine has
depends on its model: of one that it has not, its own 404 comes back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

POST = ("POST",)
GET = ("GET", "HEAD")


@dataclass(frozen=True)
class Route:
    """One path of the engine; a word in braces stands for any one segment.

    ``named_events`` where the events of its streams carry names.
    """

    path: str
    methods: tuple[str, ...] = POST
    named_events: bool = False


GENERATION = (
    Route("/v1/chat/completions"),
    Route("/v1/chat/completions/batch"),
    Route("/v1/completions"),
    Route("/v1/responses", named_events=True),
    Route("/v1/responses/{response_id}", GET, named_events=True),
    Route("/v1/responses/{response_id}/cancel"),
    Route("/v1/messages", named_events=True),
    Route("/v1/systemone"),
    Route("/cohere/v2/chat", named_events=True),
    Route("/generative_scoring"),
    Route("/invocations"),
)
POOLING = (
    Route("/v1/embeddings"),
    Route("/v2/embed"),
    Route("/pooling"),
    Route("/classify"),
    Route("/score"),
    Route("/v1/score"),
    Route("/rerank"),
    Route("/v1/rerank"),
    Route("/v2/rerank"),
)
SPEECH = (Route("/v1/audio/transcriptions"), Route("/v1/audio/translations"))
INFORMATION = (
    Route("/v1/models", GET),
    Route("/v1/messages/count_tokens"),
    Route("/tokenize"),
    Route("/detokenize"),
    Route("/tokenizer_info", GET),
    Route("/version", GET),
    Route("/load", GET),
    Route("/ping", (*GET, *POST)),
    Route("/kv_event_sources", GET),
)
FORWARDED = (*GENERATION, *POOLING, *SPEECH, *INFORMATION)

# What the gateway answers itself. With keys on, all but the first ask for one.
OPEN = (Route("/health", GET), Route("/ready", GET))
OWN = (*OPEN, Route("/variant", GET), Route("/metrics", GET), Route("/openapi.json", GET))
ADMIN = (Route("/admin/variant"),)
UNKNOWN = Route("unknown", ())


def finder(routes: Iterable[Route]) -> Callable[[str], Route | None]:
    """A function from a path to its route: a look-up, and a walk for those with braces."""
    plain = {route.path: route for route in routes if "{" not in route.path}
    braced = [(route.path.split("/"), route) for route in routes if "{" in route.path]

    def find(path: str) -> Route | None:
        if route := plain.get(path):
            return route
        words = path.split("/")
        for pattern, route in braced:
            if len(words) == len(pattern) and all(map(_fits, pattern, words)):
                return route
        return None

    return find


def _fits(pattern: str, word: str) -> bool:
    return bool(word) if pattern.startswith("{") else pattern == word
