"""llama.cpp's vocabularies (its folder ``models``), through our tokenizer: each has texts, and the
ids that llama.cpp's tests want of them, most by the model's own tokenizer.
"""

from pathlib import Path
from typing import Any

from bake.checkpoint import gguf
from bake.checkpoint.families.metadata import Metadata
from bake.checkpoint.families.tokenizer import tokenizer_files
from bake.checkpoint.source import mapped
from bake.errors import Unsupported

BETWEEN = "\n__ggml_vocab_test__\n"
# More rows than any vocabulary has: these files have no embedding.
ROWS = 2**22


def vocabularies(folder: Path) -> list[dict[str, Any]]:
    """Each of the folder: how many texts became other ids, and which; or why it is refused."""
    found = sorted(folder.glob("ggml-vocab-*.gguf"))
    return [one(path) for path in found if path.with_name(f"{path.name}.out").exists()]


def one(path: Path) -> dict[str, Any]:
    """One of them."""
    from tokenizers import Tokenizer

    name = path.stem.removeprefix("ggml-vocab-")
    try:
        with mapped(path) as source:
            metadata = Metadata(source, gguf.parse(source).metadata)
            _, files = tokenizer_files(metadata, ROWS, 1)
    except Unsupported as error:
        return {"name": name, "refused": error.what.removeprefix(f"{path}: ")}
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    texts = path.with_name(f"{path.name}.inp").read_bytes().decode().split(BETWEEN)
    lines = path.with_name(f"{path.name}.out").read_text().splitlines()
    wanted = [[int(number) for number in line.split()] for line in lines]
    # What follows the last mark is no text.
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts[: len(wanted)]]
    otherwise = [
        text for text, a, b in zip(texts[: len(wanted)], ids, wanted, strict=True) if a != b
    ]
    told = [ascii(text)[:80] for text in otherwise]
    return {"name": name, "texts": len(wanted), "otherwise": told}
