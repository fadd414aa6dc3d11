"""What a converted folder is measured against, each in a process of its own.

    python -m scripts.conversion_peers plain GGUF DST     gguf-py's numbers, as F32, in a GGUF
    python -m scripts.conversion_peers transformers FOLDER < job.json
    python -m scripts.conversion_peers llama_cpp GGUF < job.json

A job has ``prompts`` (lists of ids), ``texts``, how many ``tokens`` there are, ``threads``, and
``answer``: the file for what is found, of arrays. With ``like_ggml`` transformers computes GELU as
ggml does. ``logprobs`` are natural, of every token as the
one after each prompt; ``ids`` of all texts lie in one row, ``lengths`` says where each ends.
"""

import json
import sys
from typing import Any

import numpy as np


def plain(source: str, target: str) -> None:
    """The same model, without blocks: every tensor as gguf-py dequantizes it."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        own = field.name.startswith("GGUF.") or field.name == "general.architecture"
        if not own:
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor_info(
            tensor.name,
            tuple(reversed(tensor.shape.tolist())),
            np.dtype(np.float32),
            int(tensor.n_elements) * 4,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.write_tensor_data(numbers.reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.close()


def transformers(folder: str, job: Any) -> dict[str, Any]:
    """Computed in float32, whatever the folder's dtype."""
    from serve.plugin.patches import TORCHVISION_OPS, apply_all

    apply_all([TORCHVISION_OPS])
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if job.get("like_ggml"):
        like_ggml(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        ahead = [model(torch.tensor([one])).logits[0, -1].double() for one in job["prompts"]]
    found = [torch.log_softmax(one, -1).float().numpy() for one in ahead]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in job["texts"]]
    return {"logprobs": np.array(found, np.float32), "ids": ids}


def like_ggml(model: Any) -> None:
    """GELU as ggml has it on a CPU: looked up, by a half float, in a table of half floats
    (``ggml_vec_gelu_f32`` of b11434; MIT). Gemma's is the only function that ggml rounds so.
    """
    import torch

    class Table(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            looked_up = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half()
            inner = torch.where(x <= -10, torch.zeros_like(x), looked_up.float())
            return torch.where(x >= 10, x, inner)

    for layer in model.model.layers:
        layer.mlp.act_fn = Table()


def llama_cpp(gguf: str, job: Any) -> dict[str, Any]:
    """By its server."""
    from scripts.llama_cpp import Engine

    engine = Engine(gguf, job["tokens"], job["threads"])
    found = [engine.logprobs(prompt) for prompt in job["prompts"]]
    return {
        "logprobs": np.array(found, np.float32),
        "ids": [engine.ids(text) for text in job["texts"]],
    }


def main(what: str, *paths: str) -> None:
    """One of them."""
    if what == "plain":
        plain(*paths)
        return
    job = json.load(sys.stdin)
    found = {"transformers": transformers, "llama_cpp": llama_cpp}[what](paths[0], job)
    ids = found.pop("ids")
    found["lengths"] = np.array([len(one) for one in ids], np.int64)
    found["ids"] = np.array([number for one in ids for number in one], np.int64)
    np.savez(job["answer"], **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
