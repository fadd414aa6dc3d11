"""``--load-format preheat``: weights from a blob, each byte proven, straight into the model.

    --model BLOB --load-format preheat
    --model CHECKPOINT … --model-loader-extra-config '{"quantize":"q6_k"}'     in situ, to compare
    --model EITHER …     --model-loader-extra-config '{"capture":"<folder>"}'  see ``ranks``

vLLM asks for a loader twice where MTP drafts: for the model, then for the drafter, which lies in
the same folder; each gets only the tensors that it takes. What is not proven reaches no model, and
a parameter that is not whole ends the start.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.model_loader import BaseModelLoader

from blob.blob import Blob
from blob.errors import BlobError
from blob.manifest import is_blob
from blob.recipe import Recipe
from blob.store import Store
from serve.plugin import ranks
from serve.plugin.filling import Waited, Written, all_cores
from serve.plugin.load_format import FORMAT
from serve.plugin.sources import BlobSource, CheckpointSource, Source

# vLLM's name for models whose config.json carries the quantization that int4 blobs are made for.
PACKED = "compressed-tensors"
# Made from the quantization's configuration; no checkpoint has them.
FROM_CONFIG = ("input_scale_ub",)

# A child of vLLM's own logger, so that its handlers and process labels apply.
logger = logging.getLogger("vllm.preheat")


class WeightsError(RuntimeError):
    """The weights cannot be had as asked, or are not whole; no engine starts with them.

    By its name ``serve.startlog`` knows the line for the cause, of all that vLLM prints.
    """


@dataclass(frozen=True)
class Options:
    """``--model-loader-extra-config``. ``threads``: that decode and verify; all cores if not set.

    ``quantize``, ``group``: a checkpoint is quantized while it is loaded. ``capture``: a folder for
    this rank's slices, kept in ``codec``, their files in ``store`` (``<capture>.store``).
    """

    quantize: str | None = None
    group: int | None = None
    capture: str | None = None
    codec: str = "raw"
    store: str | None = None
    threads: int | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Options":
        """Closed: an unknown key is an error.

        :raises ValueError: unknown key, or a value that is none of its kind.
        """
        known = {field.name: field.type for field in fields(cls)}
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(f"load format {FORMAT} takes {sorted(known)}, not {unknown[0]!r}")
        options = cls(**given)
        for name in ("group", "threads"):
            value = getattr(options, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
        for name in ("quantize", "capture", "codec", "store"):
            value = getattr(options, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name} must be a string, got {value!r}")
        return options


class Loader(BaseModelLoader):  # type: ignore[misc]
    """Loads one model, or its drafter."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self.options = Options.parse(load_config.model_loader_extra_config or {})
        self.report: dict[str, Any] = {}
        self._filled_at = 0.0

    def download_model(self, model_config: Any) -> None:
        """A blob is a folder: there is nothing to fetch."""

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        """As vLLM does it, and one line that says how long each phase took.

        :raises WeightsError: a blob is damaged or another, or a parameter stays unwritten.
        """
        model = super().load_model(vllm_config, model_config, prefix)
        self.report["seconds"]["post-process"] = round(time.perf_counter() - self._filled_at, 4)
        logger.info("preheat: weights loaded: %s", json.dumps(self.report))
        return model

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Fill ``model``; ``report`` then tells from what and how long.

        :raises WeightsError: as ``load_model``.
        """
        began = time.perf_counter()
        drafter = _is_drafter(model_config)
        try:
            here = ranks.here()
            folder = Path(model_config.model)
            with all_cores():
                source, of_rank = self._open(folder, here, model, model_config, drafter)
                opened = time.perf_counter()
                waited = (_fill_rank if of_rank else _fill)(model, source)
            filled = time.perf_counter()
            self._capture(model, model_config, source, here, drafter)
        except BlobError as error:
            raise WeightsError(f"{model_config.model}: {error}") from error
        self.report = {
            "model": type(model).__name__,
            "drafter": drafter,
            "from": "rank" if of_rank else source.kind,
            "rank": here.rank,
            "world": here.world,
            "tensors": waited.tensors,
            "bytes_stored": source.bytes_stored,
            "bytes_out": source.bytes_out,
            "wall": round(filled - began, 4),
            "seconds": {
                "map": round(opened - began, 4),
                **{phase: round(seconds, 4) for phase, seconds in source.seconds.items()},
                "wait": round(waited.seconds, 4),
                "copy": round(filled - opened - waited.seconds, 4),
            },
        }
        self._filled_at = time.perf_counter()

    def _open(
        self, folder: Path, here: ranks.Here, model: Any, model_config: Any, drafter: bool
    ) -> tuple[Source, bool]:
        """Where the weights come from, and whether they are this rank's slices."""
        threads, quantize = self.options.threads, self.options.quantize
        if own := ranks.find(folder, here, drafter):
            if quantize or self.options.capture:
                raise BlobError(f"{folder}: holds the slices of ranks", "name what they are of")
            blob = ranks.opened(folder, own, here)
            ranks.check_parameters(model, blob.manifest)
            # Never packed: slices are parameters, of a packed model those it takes packed, too.
            return BlobSource(blob, threads=threads), True
        if is_blob(folder):
            if quantize:
                raise BlobError(f"{folder}: a blob is quantized already", "name a checkpoint")
            packed = model_config.quantization == PACKED
            return BlobSource(Blob.open(folder), packed=packed, threads=threads), False
        if not quantize and not self.options.capture:
            raise BlobError(f"{folder}: no blob: no manifest.json", "make one: preheat bake pack")
        recipe = Recipe(quantize, self.options.group) if quantize else None
        return CheckpointSource(folder, recipe, threads), False

    def _capture(
        self, model: Any, model_config: Any, source: Source, here: ranks.Here, drafter: bool
    ) -> None:
        if self.options.capture:
            _tie_again(model, model_config)
            out = Path(self.options.capture)
            store = Store(Path(self.options.store or f"{out}.store"))
            codec = self.options.codec
            ranks.capture(model, out, store, here, codec, source, drafter=drafter)


def _is_drafter(model_config: Any) -> bool:
    config = get_current_vllm_config_or_none()
    speculative = config.speculative_config if config else None
    return speculative is not None and model_config is speculative.draft_model_config


def _fill(model: torch.nn.Module, source: Source) -> Waited:
    """Have the model take what it wants, by its own ways with names, fused layers and slices."""
    waited, written = Waited(), Written(model)
    with written:
        # Some models do not say what they loaded; then only what was written counts.
        loaded = model.load_weights(waited.over(source.stream(wanted(model, source))))
    exempt = _exempt(model)
    unwritten = [told for told in written.not_whole(model) if told.split(" ")[0] not in exempt]
    never = [] if loaded is None else sorted(_parameters(model) - set(loaded) - exempt)
    named = {told.split(" ")[0] for told in unwritten}
    if missing := sorted(unwritten + [name for name in never if name not in named]):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BlobError(f"not in these weights: {', '.join(missing[:5])}{more}")
    return waited


def _fill_rank(model: torch.nn.Module, source: Source) -> Waited:
    """Copy each array to the parameter of its name, as ``ranks.opened`` has found them all."""
    waited = Waited()
    places = ranks.places(model)
    for name, tensor in waited.over(source.stream(source.names())):
        places[name].copy_(tensor)
        del tensor
    return waited


def wanted(model: torch.nn.Module, source: Source) -> list[str]:
    """The names in ``source`` that ``model`` takes: what it drops is not even decoded.

    :raises BlobError: its config ties the head to the embedding, and the source has another head.
    """
    taken = {name: _renamed(model, name) for name in source.names() if not _unused(model, name)}
    named = {name: new for name, new in taken.items() if new is not None}
    by_new_name = {new: name for name, new in named.items()}
    further = _tied(model)
    for name, new in list(named.items()):
        first = by_new_name.get(further.get(new, ""))
        if first and not source.same(name, first):
            raise BlobError(
                f"{name}: config.json ties it to {first}, and they differ",
                "set tie_word_embeddings to false in config.json",
            )
        if first:
            del named[name]
    return list(named)


def _unused(model: torch.nn.Module, name: str) -> bool:
    ask = getattr(model, "is_unused_checkpoint_weight", None)
    return bool(ask and ask(name))


def _renamed(model: torch.nn.Module, name: str) -> str | None:
    """What the model calls it; None when it drops it."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    new: str | None = mapper.map_name(name) if mapper else name
    return new


def _tied(model: torch.nn.Module) -> dict[str, str]:
    """Further names of parameters that have more than one, each with the first."""
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    pairs = [(name, first.setdefault(id(param), name)) for name, param in every]
    return {name: one for name, one in pairs if name != one}


def _parameters(model: torch.nn.Module) -> set[str]:
    return {name for name, param in model.named_parameters() if param.numel()}


def _exempt(model: torch.nn.Module) -> set[str]:
    """Parameters that a checkpoint may leave out: as vLLM's ``track_weights_loading`` has them."""
    names = set()
    for prefix, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        whole = isinstance(method, BaseKVCacheMethod) or getattr(method, "uses_meta_device", False)
        for name, _ in module.named_parameters():
            if whole or name.rsplit(".", 1)[-1] in FROM_CONFIG:
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def _tie_again(model: Any, model_config: Any) -> None:
    """What vLLM does next: a head that equals the embedding is not kept twice."""
    from vllm.model_executor.model_loader.weight_tying import maybe_retie_word_embeddings

    maybe_retie_word_embeddings(model, model_config)
