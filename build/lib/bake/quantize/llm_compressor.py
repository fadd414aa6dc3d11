"""The same recipe by llm-compressor 0.14. Run by the interpreter of an environment that has it, as
a file: nothing of this repository can be imported there. The job is JSON on standard input:
``source``, ``folder``, ``ids`` (texts as tokens), ``targets``, ``ignore``, ``group``, ``awq``.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Make the folder; what the library says goes to standard error."""
    job = json.load(sys.stdin)
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset  # type: ignore
    from llmcompressor import oneshot  # type: ignore
    from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore
    from llmcompressor.modifiers.transform.awq import AWQModifier  # type: ignore
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # 0.14 pins what its AWQ keeps, which asks for an accelerator.
    torch.Tensor.pin_memory = _same
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(job["source"])
    args = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=job["group"]
    )
    scheme = QuantizationScheme(targets=job["targets"], weights=args)
    rounding = QuantizationModifier(config_groups={"group_0": scheme}, ignore=job["ignore"])
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["ids"]]
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=[AWQModifier(), rounding] if job["awq"] else [rounding],
        max_seq_length=len(job["ids"][0]),
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(job["folder"], save_compressed=True)
    tokenizer.save_pretrained(job["folder"])


def _same(tensor: Any, *_: Any, **__: Any) -> Any:
    return tensor


if __name__ == "__main__":
    main()
