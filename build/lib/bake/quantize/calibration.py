"""Runs a model layer by layer over texts, in float32, and lets a search look at what each met.

One layer is in memory at a time, with the hidden states of all texts. Layers and what they are
called with (masks, rotary tables) are transformers' own; weights come from the checkpoint as they
are stored. Every operation runs on one thread and texts are summed in order: the same bytes for any
number of workers. A layer's output is that of the weights as trained, as in AWQ's own code.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import local
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bake.errors import BakeError, Malformed
from bake.quantize.linears import EMBEDDING, LAYER
from bake.quantize.search import Inputs
from blob.codecs import Floats


class Read(Protocol):
    """Reads a stored tensor as float32; of some of its ``rows`` alone, where they are given."""

    def __call__(self, name: str, rows: NDArray[np.int64] | None = None) -> Floats:
        """:raises Malformed: it holds what is no number."""


@contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """Threads, each of which computes on itself alone; so does the caller meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as made:
            yield made
    finally:
        torch.set_num_threads(before)


class Model:
    """A model of transformers whose layers are empty until they are run."""

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], read: Read) -> None:
        """``shapes``: of all tensors of the checkpoint; ``read``: one of them, as float32.

        :raises BakeError: transformers does not know the model.
        :raises Malformed: layers or the embedding are not what the config says.
        """
        import torch
        from transformers import AutoModelForCausalLM

        self._read = read
        self._config = _config(folder)
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(self._config, attn_implementation="eager")
        self._inner = made.model.eval()
        self._layers = list(self._inner.layers)
        self._embedding = next(name for name in shapes if EMBEDDING.match(name))
        self._tokens = self._rows(shapes[self._embedding])
        self.prefixes = self._prefixes(list(shapes))
        self._calls: list[dict[str, Any]] = []

    def _rows(self, shape: tuple[int, ...]) -> int:
        width = self._config.hidden_size
        if len(shape) != 2 or shape[1] != width:
            detail = f"expected rows of {width} by its config, got {list(shape)}"
            raise Malformed(self._embedding, detail)
        return shape[0]

    def _prefixes(self, names: Sequence[str]) -> list[str]:
        found = {m["prefix"] for name in names if (m := LAYER.match(name))}
        ordered = sorted(found, key=lambda one: int(one.rpartition(".")[2]))
        if len(ordered) != len(self._layers):
            detail = f"expected {len(self._layers)} layers by its config, got {len(ordered)}"
            raise Malformed("the checkpoint", detail)
        return ordered

    def hidden(self, tokens: NDArray[np.int64]) -> list[Any]:
        """What the first layer gets, of each text: 1 × tokens × width."""
        import torch

        if int(tokens.max()) >= self._tokens:
            detail = f"token {int(tokens.max())} of the tokenizer, and {self._tokens} embeddings"
            raise Malformed(self._embedding, detail)
        made = [torch.from_numpy(self._read(self._embedding, row)[None]) for row in tokens]
        self._calls = self._recorded(made[0])
        return made

    def _recorded(self, hidden: Any) -> list[dict[str, Any]]:
        """What each layer is called with, beside hidden states: the same for every text."""
        import torch

        calls: list[dict[str, Any]] = []

        class Recorder(torch.nn.Module):  # type: ignore[misc]
            def forward(self, states: Any, **kwargs: Any) -> Any:
                calls.append(kwargs)
                return states

        inner = self._inner
        inner.layers = torch.nn.ModuleList(Recorder() for _ in self._layers)
        inner.norm = torch.nn.Identity()
        inner.rotary_emb = type(inner.rotary_emb)(config=self._config)
        with torch.no_grad():
            inner(inputs_embeds=hidden, use_cache=False)
        return calls

    def run(
        self, at: int, hidden: list[Any], watched: Sequence[str], pool: Executor, workers: int
    ) -> dict[str, Inputs]:
        """Run layer ``at`` over ``hidden``, which becomes its output; give what ``watched``
        weights met.

        :raises Malformed: an output is no number.
        """
        layer = self._loaded(at)
        seen = _Watch(layer, self.prefixes[at], watched)
        sums: dict[str, list[Any]] = {}
        work = partial(seen.run, call=self._calls[at])
        # As many at once as there are workers: each holds a Gram matrix of its own.
        for begin in range(0, len(hidden), workers):
            some = range(begin, min(begin + workers, len(hidden)))
            done = pool.map(work, [hidden[one] for one in some])
            for one, (output, met) in zip(some, done, strict=True):
                hidden[one] = output
                _add(sums, met)
        if not all(bool(state.isfinite().all()) for state in hidden):
            raise Malformed(self.prefixes[at], "what the layer gives is no number")
        return {name: Inputs(gram, (size / n).numpy()) for name, (gram, size, n) in sums.items()}

    def _loaded(self, at: int) -> Any:
        import torch

        layer = self._layers[at].to_empty(device="cpu").float()
        prefix = self.prefixes[at]
        for name, parameter in layer.named_parameters():
            values = self._read(f"{prefix}.{name}")
            if values.shape != tuple(parameter.shape):
                detail = f"expected {tuple(parameter.shape)} by its config, got {values.shape}"
                raise Malformed(f"{prefix}.{name}", detail)
            parameter.data = torch.from_numpy(values)
        if any(True for _ in layer.named_buffers()):
            raise BakeError(f"{prefix}: its layers keep buffers, which no checkpoint has")
        return layer

    def forget(self, at: int) -> None:
        """Let go of a layer's weights."""
        self._layers[at].to("meta")


class _Watch:
    """Hooks on the matrices of one layer; each thread has what its own text met."""

    def __init__(self, layer: Any, prefix: str, watched: Sequence[str]) -> None:
        self._layer = layer
        self._own = local()
        for name in watched:
            module = layer.get_submodule(name.removeprefix(f"{prefix}.").removesuffix(".weight"))
            module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[Any, Any], None]:
        def look(_module: Any, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            self._own.met[name] = [x.T @ x, x.abs().sum(dim=0), len(x)]

        return look

    def run(self, hidden: Any, call: Mapping[str, Any]) -> tuple[Any, dict[str, list[Any]]]:
        import torch

        self._own.met = {}
        with torch.no_grad():
            output = self._layer(hidden, **call)
        return (output[0] if isinstance(output, tuple) else output), self._own.met


def _add(sums: dict[str, list[Any]], met: Mapping[str, list[Any]]) -> None:
    for name, parts in met.items():
        if name not in sums:
            sums[name] = parts
        else:
            sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)]


def _config(folder: Path) -> Any:
    from serve.plugin import torchvision_ops

    if torchvision_ops.needed():
        torchvision_ops.apply()
    from transformers import AutoConfig
    from transformers.utils import logging

    # That a kernel for CUDA is not there is no news here.
    logging.set_verbosity_error()
    try:
        made = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    # What it raises of a config depends on the family.
    except Exception as error:
        raise BakeError(
            f"{folder}: transformers does not know the model: {error!s:.200}",
            "say --scheme rtn-w4a16",
        ) from error
    return getattr(made, "text_config", None) or made
