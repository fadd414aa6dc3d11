"""Small blobs of several codecs, made by code; and changed ones whose digests all fit again."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from blob import manifest
from blob.codecs.bfloat16 import from_float32
from blob.header import PREFIX
from blob.recipe import Choice, Recipe, choose
from blob.registry import codec_of
from blob.spelling import canonical
from blob.store import Store
from blob.writer import About, Plain, write

CONFIG = b'{"architectures":["Tiny"]}\n'
CODECS = ("int4", "int5", "q8_0", "q4_k", "q5_k", "q6_k", "zipnn", "raw")
GROUP = {"int4": {"group": 32}, "int5": {"group": 128}}


def bfloats(*shape, seed=0, size=0.02):
    """Normal numbers as BF16 bits."""
    values = np.random.default_rng(seed).standard_normal(shape) * size
    return from_float32(np.ascontiguousarray(values, np.float32))


def plain(name, array, dtype="BF16", codec="raw"):
    return Plain(name, dtype, array, Choice(codec_of(codec, GROUP.get(codec, {}), name)))


def tensors(seed=0, codecs=CODECS):
    """One matrix of each codec in two layers, and a scalar that is as it is."""
    made = []
    for number, codec in enumerate(codecs):
        shape = (32, 32) if codec == "int4" else (2, 256)
        name = f"model.layers.{number % 2}.{codec}.weight"
        made.append(plain(name, bfloats(*shape, seed=seed + number), codec=codec))
    return [*made, plain("scale", np.array(1.5, np.float32), "F32")]


def packed(folder, store=None, seed=0, plains=None, threads=1, **about):
    """The blob of ``tensors`` in ``folder``, with a config."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(store or folder.parent / "store")
    files = about.pop("files", {"config.json": CONFIG})
    fields = About({"codec": "int5", "targets": "linears"}, {"a.safetensors": "0" * 64}, files)
    plains = tensors(seed) if plains is None else plains
    return write(folder, plains, store, fields, threads=threads)


def chosen(name, array, recipe, dtype="BF16"):
    return Plain(name, dtype, array, choose(name, array.shape, dtype, Recipe(*recipe)))


def tree_of(folder):
    return json.loads((folder / "manifest.json").read_bytes())


def signed(tree):
    """``tree`` spelled with seals, fingerprint and digest that fit what it says now."""
    tensors = tree.get("tensors")
    for entry in tensors if isinstance(tensors, list) else ():
        if isinstance(entry, dict) and "seal" in entry:
            entry.pop("seal")
            entry["seal"] = hashlib.sha256(canonical(entry)).hexdigest()[:16]
    if isinstance(tensors, list):
        pairs = [(t.get("name"), t.get("sha256")) for t in tensors if isinstance(t, dict)]
        tree["fingerprint"] = manifest.fingerprint(pairs)
    tree.pop("digest", None)
    tree["digest"] = hashlib.sha256(canonical(tree)).hexdigest()
    return canonical(tree)


def place(folder, raw, name="manifest.json"):
    """Put ``raw`` in the place of a sealed file, whose other links stay as they are."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(raw)


def changed(folder, change):
    """Let ``change`` alter the manifest's tree, which is then signed again."""
    tree = tree_of(folder)
    change(tree)
    place(folder, signed(tree))


def entry_of(tree, name):
    return next(entry for entry in tree["tensors"] if entry["name"] == name)


def reshard(folder, old, raw):
    """Put ``raw`` in the place of the shard ``old`` (its SHA-256), digests and all."""
    new = hashlib.sha256(raw).hexdigest()
    (folder / f"{old}.safetensors").unlink()
    (folder / f"{new}.safetensors").write_bytes(raw)

    def rename(tree):
        for shard in tree["shards"]:
            if shard["sha256"] == old:
                shard.update(sha256=new, size=len(raw))
        tree["shards"].sort(key=lambda shard: shard["sha256"])
        for entry in tree["tensors"]:
            entry["shard"] = new if entry["shard"] == old else entry["shard"]

    changed(folder, rename)
    return new


def header_of(raw):
    """The JSON of a shard's header, and the bytes after it."""
    (length,) = PREFIX.unpack(raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def shard_of(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def content(folder):
    """Every plain file below ``folder`` by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
