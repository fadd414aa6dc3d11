"""Baked roots made by code: small, but with every kind of name that a real one has."""

from pathlib import Path

from serve import manifest

AOT = f"vllm/torch_compile_cache/torch_aot_compile/{'0a' * 32}"
FILES = {
    "identity.json": b"{}\n",
    "factors/backbone.json": b'{"a":1}\n',
    f"{AOT}/rank_0_0/model": b"\x80\x04pickle" * 500,
    f"{AOT}/inductor_cache/ab/{'c' * 52}.main/{'d' * 60}.so": bytes(range(256)) * 300,
    "inductor/empty": b"",
    "triton/ünïcode and space": b"x",
}


def fill(root: Path, files: dict[str, bytes] = FILES) -> Path:
    """``files`` below ``root``, without a manifest."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def baked(root: Path, files: dict[str, bytes] = FILES) -> Path:
    """The same with one."""
    manifest.write(fill(root, files))
    return root
