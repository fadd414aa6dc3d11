"""Small tokenizers and checkpoints, made by the libraries themselves."""

import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bake.vocabulary import counts, tokenizer
from scripts.tiny.tokenizer import SPLIT

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>")
TEXT = """
Each text was written once, and the merges are learned from words that stand in it often.
Привет, мир! Это небольшой текст на русском языке, и он повторяется несколько раз.
你好，世界。这是一个很小的例子，世界很大。 こんにちは世界。これは小さな例です。
안녕하세요 세계. 이것은 작은 예입니다. مرحبا بالعالم هذا نص صغير جدا والعالم كبير
नमस्ते दुनिया यह एक छोटा पाठ है। ภาษาไทยเป็นข้อความเล็ก ๆ שלום עולם זה טקסט קטן
def merge(left, right):\n    return left + right  # the parts of the whole\n
for (let i = 0; i < words.length; i++) { counts[words[i]] += 1; }
🤗🚀 emoji 👩‍👩‍👧 and e\u0301 combining a\u0308 marks
"""


def library(size=700, text=TEXT, ignore_merges=False):
    """A trained tokenizer of ``size`` tokens with four markers behind its vocabulary."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([text] * 4, trainer)
    made.add_tokens([AddedToken(one, special=True, normalized=False) for one in MARKERS])
    assert made.get_vocab_size() == size
    return made


def ours(made):
    return tokenizer.parsed(made.to_str().encode(), "tokenizer.json")


def falling(seed, size):
    """Counts as of a language, in random order."""
    numbers = [int(2**20 / (1 + at)) for at in range(size)]
    random.Random(seed).shuffle(numbers)
    return numbers


def write_counts(path, made, numbers, always=()):
    told = counts.Counts("made", ours(made).digest, counts.levels(numbers), tuple(always), {})
    path.write_text(counts.dumped(told))
    return path


def tables(rows, hidden=8, seed=1, *, head=False, drafts=False):
    """Tensors as of a small model; each row of a table says which it is."""
    rng = np.random.default_rng(seed)
    table = np.arange(rows, dtype=np.float32)[:, None] + np.zeros((1, hidden), np.float32)
    made = {
        "model.embed_tokens.weight": table,
        "model.layers.0.mlp.up_proj.weight": rng.random((5, hidden), np.float32),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    if head:
        made["lm_head.weight"] = -table
    if drafts:
        made["mtp.embed_tokens.weight"] = table + 0.5
        made["mtp.shared_head.head.weight"] = -table - 0.5
    return made


def checkpoint(folder, made, tensors=None, *, shards=1, **config):
    """A folder with everything that names an id."""
    folder.mkdir(parents=True)
    size = made.get_vocab_size()
    end, pad = made.token_to_id("<|im_end|>"), made.token_to_id("<|endoftext|>")
    tensors = tables(size) if tensors is None else tensors
    told = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": size,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "eos_token_id": end,
        "pad_token_id": pad,
        "bos_token_id": None,
        **config,
    }
    write(folder / "config.json", told)
    write(folder / "generation_config.json", {"eos_token_id": [end, pad], "temperature": 0.6})
    settings = {"added_tokens_decoder": {}, "eos_token": "<|im_end|>", "model_max_length": 64}
    for text in MARKERS:
        settings["added_tokens_decoder"][str(made.token_to_id(text))] = {"content": text}
    write(folder / "tokenizer_config.json", settings)
    write(folder / "special_tokens_map.json", {"eos_token": "<|im_end|>"})
    write(folder / "added_tokens.json", {text: made.token_to_id(text) for text in MARKERS})
    (folder / "tokenizer.json").write_text(made.to_str())
    (folder / "chat_template.jinja").write_text("{{ messages }}<|im_start|>assistant\n")
    save_shards(folder, tensors, shards)
    return folder


def save_shards(folder, tensors, shards):
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    listed = {}
    for at in range(shards):
        file = f"model-{at + 1:05}-of-{shards:05}.safetensors"
        some = {name: tensors[name] for name in names[at::shards]}
        save_file(some, folder / file)
        listed |= dict.fromkeys(some, file)
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": listed})


def write(path: Path, told):
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False))
