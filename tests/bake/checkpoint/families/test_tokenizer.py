"""The tokenizer of a GGUF is the one that its model had: by its own file, by SentencePiece, and by
what transformers makes of the same GGUF.
"""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from bake.checkpoint import families
from bake.checkpoint.families.metadata import Metadata
from bake.checkpoint.families.splits import SPLITS
from bake.checkpoint.families.tokenizer import tokenizer_files
from bake.checkpoint.source import Bytes
from bake.errors import Malformed, Unsupported

from .reading import FIXTURES, NAMES, read

README = Path(__file__).parents[4] / "README.md"
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces,   three\n\n\nlines\r\n\ttab ",
    "def f(x):\n    return x ** 2  # why's it 12345.67?\n",
    "Ünïcödé: naïve café, Straße, ÅÆØ, decomposed e\u0301",
    "Привет, мир! 你好，世界。 こんにちは 안녕하세요 مرحبا שלום नमस्ते ไทย",
    "🤗🚀👩‍👩‍👧 𝔘𝔫𝔦 \u200b\ufeff \x00\x7f",
    "I'LL we've DON'T it's 's 'S",
    "<|im_start|>user\nhi<|im_end|>\n<think>no</think><|endoftext|>",
    "½ ² Ⅷ ١٢٣ 1234567890",
]


def texts():
    """Those, and pieces of a README at random places."""
    rng = random.Random(7)
    whole = README.read_text()
    cuts = [rng.randrange(len(whole)) for _ in range(100)]
    return TEXTS + [whole[at : at + rng.randrange(1, 200)] for at in cuts]


def files_of(name):
    with read(name) as (contents, source):
        return families.plan(contents, source).files


def tokenizer(files):
    return Tokenizer.from_str(files["tokenizer.json"].decode())


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_bytes_are_merged_as_by_the_tokenizer_it_was_made_of(name):
    wanted = Tokenizer.from_file(str(FIXTURES / f"{name}.tokenizer.json"))
    made = tokenizer(files_of(name))
    for text in texts():
        ids = wanted.encode(text, add_special_tokens=False).ids
        assert made.encode(text, add_special_tokens=False).ids == ids, text
        for skip in (True, False):
            assert made.decode(ids, skip_special_tokens=skip) == wanted.decode(
                ids, skip_special_tokens=skip
            )
    assert made.get_vocab() == wanted.get_vocab()


@pytest.mark.parametrize("name", ["llama_spm", "gemma3"])
def test_characters_are_merged_as_sentencepiece_does(name):
    wanted = sentencepiece.SentencePieceProcessor(str(FIXTURES / f"{name}.spm"))
    made = tokenizer(files_of(name))
    for text in texts():
        # Control tokens are cut out of a text here, and are plain text there.
        if "<" in text or not text:
            continue
        ids = wanted.encode(text) if name == "llama_spm" else _without_prefix(wanted, text)
        assert made.encode(text, add_special_tokens=False).ids == ids, text


def _without_prefix(wanted, text):
    """Gemma has no space before the first word, and no word has one after a line's break."""
    first = wanted.encode("\n")
    with_break = wanted.encode("\n" + text)
    assert with_break[: len(first)] == first
    return with_break[len(first) :]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_is_what_was_encoded(name):
    made = tokenizer(files_of(name))
    for text in texts():
        if "\u0301" in text and name.startswith("qwen"):
            continue
        ids = made.encode(text, add_special_tokens=False).ids
        assert made.decode(ids, skip_special_tokens=False) == text


def test_a_text_begins_as_the_file_says():
    spm = files_of("llama_spm")
    assert tokenizer(spm).encode("a").ids[0] == 1
    assert json.loads(spm["tokenizer_config.json"])["bos_token"] == "<s>"
    # "llama-bpe" begins a text with a token, but this file names none.
    assert tokenizer(files_of("llama")).encode("a").ids == [64]


def test_the_files_beside_it():
    files = files_of("qwen3")
    told = json.loads(files["tokenizer_config.json"])
    assert told["eos_token"] == "<|im_end|>"
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["chat_template"] == files["chat_template.jinja"].decode()
    # The end of a chat first, then what ends a text.
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [318, 316]
    assert "chat_template.jinja" not in files_of("gemma3")


ALPHABET = [chr(number) for number in (*range(33, 127), *range(161, 173), *range(174, 256))]
WORDS = [*ALPHABET, *(chr(256 + n) for n in range(256 - len(ALPHABET))), "th", "the", "<end>"]
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.token_type": [1] * (len(WORDS) - 1) + [3],
    "tokenizer.ggml.merges": ["t h", "th e"],
    "tokenizer.ggml.eos_token_id": len(WORDS) - 1,
}
PIECES = ["<unk>", "<s>", "</s>", "▁", "t", "h", "th", "▁th"]
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -5.0, -4.0, -3.0, -1.0, -2.0],
}


def made_of(values, rows=400, **told):
    """The files, with values under ``tokenizer.ggml`` changed."""
    more = {f"tokenizer.ggml.{key}": value for key, value in told.items()}
    kept = {key: value for key, value in {**values, **more}.items() if value is not None}
    return tokenizer_files(Metadata(Bytes(b"", "x.gguf"), kept), rows, 128)[1]


def test_small_ones():
    assert tokenizer(made_of(BPE)).encode("the th<end>").tokens == ["the", "Ġ", "th", "<end>"]
    assert tokenizer(made_of(SPM)).encode("th th").tokens == ["<s>", "▁th", "▁th"]


def word(number, text):
    return [text if i == number else one for i, one in enumerate(WORDS)]


@pytest.mark.parametrize(
    ("told", "error", "said"),
    [
        ({"model": "bert"}, Unsupported, "tokenizer.ggml.model 'bert' is not converted"),
        ({"model": None}, Unsupported, "tokenizer.ggml.model is missing"),
        ({"pre": "deepseek-v3"}, Unsupported, "tokenizer.ggml.pre 'deepseek-v3' is not known"),
        ({"pre": None}, Unsupported, "tokenizer.ggml.pre 'default' is not known"),
        ({"tokens": None}, Unsupported, "tokenizer.ggml.tokens is missing"),
        ({"tokens": []}, Unsupported, "has no vocabulary"),
        ({"tokens": [1, 2]}, Malformed, "no list of texts"),
        ({"tokens": "abc"}, Malformed, "no list"),
        ({"tokens": word(3, "th")}, Unsupported, "tokens 3 and 256 are both 'th'"),
        ({"tokens": word(3, "\udcff")}, Malformed, "token 3 is not UTF-8"),
        ({"tokens": word(3, "x" * 5000)}, Malformed, "token 3 is 5000 bytes long"),
        ({"token_type": [1]}, Malformed, "1 token types for 259 tokens"),
        ({"token_type": [9] * 259}, Malformed, "a token type is not from 0 to 6"),
        ({"token_type": [1.5] * 259}, Malformed, "token types for 259 tokens"),
        ({"merges": None}, Unsupported, "tokenizer.ggml.merges is missing"),
        ({"merges": ["t e"]}, Malformed, "merge 0 is not of two tokens to a third"),
        ({"merges": ["the"]}, Malformed, "merge 0 is not of two tokens"),
        ({"merges": [""]}, Malformed, "merge 0 is not of two tokens"),
        ({"merges": ["\udcff h"]}, Malformed, "merge 0 is not UTF-8"),
        ({"eos_token_id": 259}, Malformed, "eos_token_id is 259, of 259 tokens"),
        ({"eos_token_id": -1}, Malformed, "no whole number"),
        ({"add_bos_token": 1}, Malformed, "neither true nor false"),
    ],
)
def test_damaged_lists_are_refused(told, error, said):
    with pytest.raises(error) as caught:
        made_of(BPE, **told)
    assert said in f"{caught.value}"


@pytest.mark.parametrize(
    ("told", "error", "said"),
    [
        ({"scores": None}, Unsupported, "scores is missing"),
        ({"scores": [1.0]}, Malformed, "1 scores for 8 tokens"),
        ({"scores": [float("nan")] * 8}, Malformed, "no list of finite numbers"),
        ({"remove_extra_whitespaces": True}, Unsupported, "remove_extra_whitespaces"),
        ({"tokens": [*PIECES[:7], "t" * 257]}, Malformed, "longer than any vocabulary's"),
    ],
)
def test_damaged_scores_are_refused(told, error, said):
    with pytest.raises(error, match=said):
        made_of(SPM, **told)


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(Malformed, match="259 tokens, and an embedding of 258 rows"):
        made_of(BPE, rows=258)


def test_unused_and_empty_tokens_have_no_text():
    made = tokenizer(made_of(BPE, tokens=word(7, ""), token_type=[5, *[1] * 257, 3]))
    assert made.id_to_token(7) is None
    assert made.id_to_token(0) is None


def test_merges_that_stand_there_twice_count_once():
    told = json.loads(made_of(BPE, merges=["t h", "th e", "t h"])["tokenizer.json"])
    assert told["model"]["merges"] == [["t", "h"], ["th", "e"]]


@pytest.mark.parametrize("pre", SPLITS)
def test_every_split_loads(pre):
    made = tokenizer(made_of(BPE, pre=pre))
    for text in TEXTS:
        if "\u0301" not in text:
            ids = made.encode(text, add_special_tokens=False).ids
            assert made.decode(ids, skip_special_tokens=False) == text


ORACLE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from serve.plugin.patches import TORCHVISION_OPS, apply_all
apply_all([TORCHVISION_OPS])
from transformers import AutoTokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

job = json.load(sys.stdin)
told = {}
for name, folder in job["folders"].items():
    ours = AutoTokenizer.from_pretrained(folder)
    theirs, _ = convert_gguf_tokenizer(*get_gguf_tokenizer(f"{job['fixtures']}/{name}.gguf")[:2])
    told[name] = {
        "ours": [ours.encode(text, add_special_tokens=False) for text in job["texts"]],
        "begun": ours.encode("a"),
        "theirs": [theirs.encode(text, add_special_tokens=False).ids for text in job["texts"]],
        "chat": ours.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        ) if ours.chat_template else "",
        "specials": [ours.bos_token_id, ours.eos_token_id, ours.pad_token_id],
    }
json.dump(told, sys.stdout)
"""


@pytest.mark.torch
def test_transformers_reads_the_files_and_makes_the_same_of_the_gguf(tmp_path):
    """In a child: transformers wants torchvision patched. Its own reading of a GGUF has no word
    for ``qwen35`` without NFC or for texts' prefixes, so only what it must get right is compared.
    """
    import subprocess
    import sys

    folders = {}
    for name in NAMES:
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for file, raw in files_of(name).items():
            (folders[name] / file).write_bytes(raw)
    job = {
        "folders": {name: str(folder) for name, folder in folders.items()},
        "fixtures": str(FIXTURES),
        "texts": texts(),
    }
    done = subprocess.run(
        [sys.executable, "-c", ORACLE],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        cwd=README.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    for name, found in told.items():
        made = tokenizer(files_of(name))
        ids = [made.encode(text, add_special_tokens=False).ids for text in texts()]
        assert found["ours"] == ids, name
        assert found["begun"] == made.encode("a").ids, name
    for name in ("llama", "qwen2", "qwen3", "qwen35"):
        differing = [
            (text, ours, theirs)
            for text, ours, theirs in zip(
                texts(), told[name]["ours"], told[name]["theirs"], strict=True
            )
            if ours != theirs and "\u0301" not in text
        ]
        assert not differing, name
    assert told["qwen3"]["chat"].endswith("<|im_start|>assistant\n")
    assert told["qwen3"]["specials"] == [None, 318, 316]
    assert told["gemma3"]["specials"] == [1, 2, None]
