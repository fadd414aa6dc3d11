"""Transformers' own Qwen3.5, as a program: a model folder and JSON questions in, JSON out.

A process of its own, because beside CPU torch the CUDA builds of torchvision and torchaudio cannot
be imported: here they are hidden from transformers, which would be rude in the tests' process.

Usage: python reference.py FOLDER < {"score": [text], "ids": [[int]], "generate": [text],
"encode": [text], "limit": int}
"""

import json
import sys
from typing import Any

sys.modules["torchvision"] = None  # type: ignore[assignment]
sys.modules["torchaudio"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


@torch.no_grad()
def answer(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out: dict[str, Any] = {"class": type(model).__name__}
    out["logits"] = [model(torch.tensor([ids])).logits[0].tolist() for ids in asked.get("ids", [])]
    if not {"score", "generate", "encode"} & set(asked):
        return out
    tok = AutoTokenizer.from_pretrained(folder)
    out["encode"] = [tok(text)["input_ids"] for text in asked.get("encode", [])]
    out["score"] = [nll(model, tok(text)["input_ids"]) for text in asked.get("score", [])]
    out["generate"] = [
        generate(model, tok, text, asked["limit"]) for text in asked.get("generate", [])
    ]
    return out


def nll(model: Any, ids: list[int]) -> list[float]:
    """Summed negative log-likelihood of all tokens but the first, and how many they are."""
    whole = torch.tensor(ids)
    logits = model(whole[None, :-1]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, whole[1:], reduction="sum")
    return [loss.item(), len(ids) - 1]


def generate(model: Any, tok: Any, text: str, limit: int) -> str:
    ids = tok(text, return_tensors="pt")
    done = model.generate(**ids, max_new_tokens=limit, do_sample=False)
    new: str = tok.decode(done[0, ids["input_ids"].shape[1] :])
    return new


if __name__ == "__main__":
    torch.set_num_threads(1)  # short texts, small matrices: more threads only wait
    json.dump(answer(sys.argv[1], json.load(sys.stdin)), sys.stdout)
