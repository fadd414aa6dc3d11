"""llama.cpp, by its server: log-probabilities and tokens of a GGUF.

Keys and values are kept in F32 and nothing is fused, so what differs from another engine's float32
is the order of sums (and, where weights are in blocks, that llama.cpp multiplies by rounded
activations). For a process of its own: it may end the process it is in.
"""

import json
import urllib.request
from typing import Any

BATCH = 2048


class Engine:
    """One model, served on a port of this machine."""

    def __init__(self, gguf: str, tokens: int, threads: int = 1) -> None:
        import xllamacpp

        told = xllamacpp.CommonParams()
        told.model.path = gguf
        told.n_ctx = BATCH
        told.n_batch = told.n_ubatch = BATCH
        told.n_parallel = 1
        told.n_gpu_layers = 0
        told.warmup = False
        told.cpuparams.n_threads = threads
        told.cpuparams_batch.n_threads = threads
        kinds = xllamacpp.llama_flash_attn_type
        told.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        told.cache_type_k = told.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.tokens = tokens
        self.server = xllamacpp.Server(told)
        self.plain = self.ids("a")[-1]

    def ask(self, path: str, **job: Any) -> Any:
        """An answer of the server."""
        address = f"{self.server.listening_address}{path}"
        head = {"content-type": "application/json"}
        request = urllib.request.Request(address, json.dumps(job).encode(), head)  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - of this machine
            return json.load(answer)

    def logprobs(self, prompt: list[int]) -> list[float]:
        """Of every token, as the one after ``prompt``."""
        told = self.ask(
            "/completion",
            prompt=prompt,
            n_predict=1,
            n_probs=self.tokens,
            temperature=-1,
            # It must write something to say anything: not an end, not half a character. What it
            # says of tokens is the model's, before such a bias.
            logit_bias=[[self.plain, 1e4]],
            cache_prompt=False,
        )
        found = told["completion_probabilities"][0]["top_logprobs"]
        by_id = {one["id"]: one["logprob"] for one in found}
        return [by_id[i] for i in range(self.tokens)]

    def ids(self, text: str, *, begun: bool = False) -> list[int]:
        """Of a text; with ``begun``, after the token that begins one."""
        told = self.ask("/tokenize", content=text, add_special=begun, parse_special=True)
        found: list[int] = told["tokens"]
        return found
