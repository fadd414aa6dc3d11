"""The frozen model that a head is trained against: any Qwen3.5 text checkpoint, quantized or not.

A quantized folder is read as its kernels would use it, its numbers given back in BF16 by
`bake.checkpoint`. Only the parts that the head meets are kept in BF16 on a large model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bake.checkpoint.arrays import array
from bake.checkpoint.convert import Job, plan
from bake.checkpoint.folder import find
from bake.errors import Unsupported
from scripts.tiny.mtp import MTP
from scripts.tiny.shape import FULL, LINEAR, Shape

PREFIXES = ("model.", "model.language_model.", "language_model.model.")
MODEL_TYPES = ("qwen3_5", "qwen3_5_text")


@dataclass(frozen=True)
class Checkpoint:
    """A folder's shape and its tensors under the names of `scripts.tiny.model`, in BF16.

    `head` is the output head where it is not the embedding itself.
    """

    shape: Shape
    tensors: Mapping[str, Tensor]
    head: Tensor

    @property
    def mtp(self) -> dict[str, Tensor]:
        """The MTP head's tensors, under the names of `scripts.tiny.mtp`."""
        return {n.removeprefix("mtp."): t for n, t in self.tensors.items() if n.startswith("mtp.")}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Sizes from a `config.json`; that of a multimodal model keeps them under `text_config`.

    :raises Unsupported: another architecture, or a layer that `scripts.tiny` does not have.
    """
    text = config.get("text_config", config)
    kind = text.get("model_type", "")
    if kind not in MODEL_TYPES:
        raise Unsupported(
            f"config.json: model_type {kind!r}, expected one of {', '.join(MODEL_TYPES)}",
            "heads of other families are laid out differently and are not trained here",
        )
    try:
        return _shape(text)
    except KeyError as error:
        raise Unsupported(f"config.json: no {error.args[0]!r}", "fetch the model again") from error


def _shape(text: Mapping[str, Any]) -> Shape:
    rope = text.get("rope_parameters") or {}
    if text["linear_key_head_dim"] != text["linear_value_head_dim"]:
        raise Unsupported("config.json: heads of keys and values differ in width")
    kinds = tuple(text["layer_types"])
    if strange := set(kinds) - {LINEAR, FULL}:
        raise Unsupported(f"config.json: layer_types holds {sorted(strange)[0]!r}")
    fraction = rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
    return Shape(
        vocab=text["vocab_size"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layer_types=kinds,
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        rotary_fraction=float(fraction),
        rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 10000.0))),
        linear_key_heads=text["linear_num_key_heads"],
        linear_value_heads=text["linear_num_value_heads"],
        linear_head_dim=text["linear_key_head_dim"],
        conv_kernel=text["linear_conv_kernel_dim"],
        norm_eps=text["rms_norm_eps"],
        positions=text["max_position_embeddings"],
    )


def load(folder: Path) -> Checkpoint:
    """Read every tensor that the text model needs.

    :raises bake.errors.BakeError: no checkpoint, a damaged one, or one without an MTP head.
    """
    shape = shape_of(find(folder).config)
    job = plan(folder)
    names = {output.name for output in job.outputs}
    if not any(name.startswith("mtp.") for name in names):
        raise Unsupported(f"{folder}: no mtp.* tensors", "only a checkpoint's own head is trained")
    prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in names), None)
    if prefix is None:
        raise Unsupported(f"{folder}: no embed_tokens.weight under {', '.join(PREFIXES)}")
    tensors = _read(job, prefix)
    head = tensors.pop("lm_head.weight", None)
    return Checkpoint(
        shape, tensors, tensors["model.embed_tokens.weight"] if head is None else head
    )


def _read(job: Job, prefix: str) -> dict[str, Tensor]:
    """Only the text model: a vision tower is passed over."""
    found = {}
    for output in job.outputs:
        name = output.name
        if name.startswith(prefix):
            name = "model." + name.removeprefix(prefix)
        elif not name.startswith(("mtp.", "lm_head.")):
            continue
        bits = np.empty(output.shape, np.uint16)
        stored = [array(job.inputs[i][0].source, job.inputs[i][1]) for i in output.inputs]
        output.fill(stored, bits, 1)
        found[name] = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    return found


def head_of(checkpoint: Checkpoint, device: str) -> MTP:
    """The MTP layer as it stands in the checkpoint, in float32: it is what is trained.

    :raises Unsupported: its tensors are not those of one Qwen3.5 MTP layer of this shape.
    """
    head = MTP(checkpoint.shape)
    mtp = {name: tensor.float() for name, tensor in checkpoint.mtp.items()}
    own = {name: tuple(p.shape) for name, p in head.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in mtp.items()}
    if odd := sorted(own.items() ^ got.items()):
        name, size = odd[0]
        raise Unsupported(f"mtp.{name} {list(size)}: not what config.json says of the MTP layer")
    head.load_state_dict(mtp)
    head.to(device)
    return head


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights, by its name."""
    return {path.name: sha256(path) for path in find(folder).weights}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
