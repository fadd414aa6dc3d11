"""Files to be inspected: as large as people's, with bytes of nothing where the weights would be.

Written by each format's own library, but for those with holes: ``torch`` and ``zipfile`` would fill
them. A hole takes no room on the disk.
"""

import collections
import io
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = 36
# Of one layer of a Qwen3: eleven tensors, 396 in all.
TENSORS = (
    *(f"self_attn.{one}_proj.weight" for one in "qkvo"),
    *(f"mlp.{one}_proj.weight" for one in ("gate", "up", "down")),
    *(f"{one}_layernorm.weight" for one in ("input", "post_attention")),
    *(f"self_attn.{one}_norm.weight" for one in "qk"),
)
# Qwen3's vocabulary and merges.
TOKENS, MERGES = 152_064, 151_387
GGUF_TENSORS = 290
# Of a byte-level vocabulary: every other token begins with a space, spelled as this.
SPACE = "Ġ"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.,;:()éа的"
SPARSE_TENSORS = 100


def names() -> list[str]:
    """Of a checkpoint as Hugging Face has them."""
    return [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in TENSORS]


def safetensors_file(path: Path) -> None:
    """396 small tensors: only the header counts."""
    from safetensors.numpy import save_file

    save_file({name: np.zeros((16, 64), np.float16) for name in names()}, path, {"format": "pt"})


def vocabulary_file(path: Path, tokens: int = TOKENS) -> None:
    """A GGUF with tokens, their types and merges, by gguf-py; the same bytes each time."""
    from gguf import GGUFWriter

    words = vocabulary(tokens)
    pairs = words[: MERGES * tokens // TOKENS]
    writer = GGUFWriter(path, "qwen3")
    writer.add_block_count(LAYERS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges([f"{one[: len(one) // 2]} {one[len(one) // 2 :]}" for one in pairs])
    for number in range(GGUF_TENSORS):
        writer.add_tensor(f"blk.{number}.ffn_down.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary(count: int) -> list[str]:
    """Words of 1 to 128 letters, 6.4 on average, as tokens of large vocabularies have."""
    chance = random.Random(0)  # noqa: S311 - not secret, the same each time
    lengths = (min(128, max(1, int(chance.gammavariate(4, 1.6)))) for _ in range(count))
    return [
        (SPACE if chance.random() < 0.5 else "") + "".join(chance.choices(LETTERS, k=length))
        for length in lengths
    ]


def pth_file(path: Path, size: int, tensors: int) -> None:
    """A state dict of ``size`` bytes about, by ``torch.save``."""
    import torch

    each = max(1, size // tensors // 2)
    made = {name: torch.zeros(each, dtype=torch.bfloat16) for name in names()[:tensors]}
    torch.save(made, path)


def sparse_file(kind: str, path: Path, size: int) -> None:
    """A file of ``size`` bytes about, of which only the header is there."""
    {"safetensors": _sparse_safetensors, "gguf": _sparse_gguf, "pth": _sparse_pth}[kind](path, size)


def _sparse_safetensors(path: Path, size: int) -> None:
    each = size // SPARSE_TENSORS
    entries = ",".join(
        f'"t{number}":{{"dtype":"U8","shape":[{each}],'
        f'"data_offsets":[{number * each},{(number + 1) * each}]}}'
        for number in range(SPARSE_TENSORS)
    )
    _with_hole(path, struct.pack("<Q", len(entries) + 2) + f"{{{entries}}}".encode(), each)


def _sparse_gguf(path: Path, size: int) -> None:
    each = size // SPARSE_TENSORS // 32 * 32
    raw = struct.pack("<4sIQQ", b"GGUF", 3, SPARSE_TENSORS, 0)
    for number in range(SPARSE_TENSORS):
        name = f"t{number}".encode()
        raw += struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, each, 24, number * each)
    _with_hole(path, raw + bytes(-len(raw) % 32), each)


def _with_hole(path: Path, raw: bytes, each: int) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + SPARSE_TENSORS * each)


def _sparse_pth(path: Path, size: int) -> None:
    """As ``torch.save`` writes it, but for the storages' checksums."""
    each = size // SPARSE_TENSORS
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _state_dict(each))
        archive.writestr("archive/byteorder", "little")
        file = archive.fp
        if file is None:
            raise RuntimeError("the archive is closed")
        for number in range(SPARSE_TENSORS):
            member = zipfile.ZipInfo(f"archive/data/{number}")
            member.header_offset = file.tell()
            member.file_size = member.compress_size = each
            member.CRC = 0
            file.write(member.FileHeader())
            file.seek(each, io.SEEK_CUR)
            archive.filelist.append(member)
        archive.start_dir = file.tell()
        archive.writestr("archive/version", "3\n")


def _state_dict(each: int) -> bytes:
    import torch

    class Saved:
        """What becomes a tensor when it is loaded."""

        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self) -> tuple[Any, ...]:
            place: tuple[Any, ...] = (
                Key(self.number),
                0,
                (each,),
                (1,),
                False,
                collections.OrderedDict(),
            )
            return torch._utils._rebuild_tensor_v2, place

    class Key(int):
        """The number of a storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: object) -> tuple[Any, ...] | None:
            if isinstance(one, Key):
                return "storage", torch.ByteStorage, str(int(one)), "cpu", each
            return None

    raw = io.BytesIO()
    Pickler(raw, protocol=2).dump({f"t{number}": Saved(number) for number in range(SPARSE_TENSORS)})
    return raw.getvalue()
