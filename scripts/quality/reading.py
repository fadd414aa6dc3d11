"""How a model in a folder reads texts, by transformers, in float32: no engine, no levers, so that
what two folders differ in is their weights alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

# Of a text, at most.
TOKENS = 512
# Texts that are read together.
BATCH = 16


def read(folder: Path, texts: Sequence[str], threads: int) -> tuple[list[float], list[int]]:
    """Of each text: negative log-likelihood in nats, and how many tokens were predicted."""
    import torch
    import torch.nn.functional as F  # noqa: N812 - torch's own name for it

    from serve.plugin import torchvision_ops

    if torchvision_ops.needed():
        torchvision_ops.apply()
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cut = [tokenizer.encode(text).ids[:TOKENS] for text in texts]
    cut = [ids for ids in cut if len(ids) > 1]
    nll = [0.0] * len(cut)
    for places in batches([len(ids) for ids in cut]):
        # Zeros stand after what is read: causal layers do not look ahead, so they change nothing.
        longest = max(len(cut[at]) for at in places)
        rows = torch.zeros(len(places), longest, dtype=torch.long)
        for row, at in enumerate(places):
            rows[row, : len(cut[at])] = torch.tensor(cut[at])
        with torch.no_grad():
            logits = model(rows[:, :-1], use_cache=False).logits.float()
        for row, at in enumerate(places):
            size = len(cut[at]) - 1
            asked = rows[row, 1 : size + 1]
            told = F.cross_entropy(logits[row, :size], asked, reduction="sum")
            nll[at] = round(float(told), 4)
    return nll, [len(ids) - 1 for ids in cut]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts that are read together, alike in length: a small model's layers take longer
    to be called than to be computed.
    """
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    for first in range(0, len(order), BATCH):
        yield order[first : first + BATCH]
