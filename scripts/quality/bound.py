"""How near what is computed from 20 log-probabilities comes to the full KL, on the tiny model.

Whole distributions by transformers, in float32, of the model and of itself with linear weights
rounded to 4 and to 3 bits: their divergence over the whole vocabulary, beside the lower bound and
the estimate from what two servers would have told. A process of its own: transformers must not
find CUDA's torchvision.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.intervals import SEED
from scripts.quality.divergence import Position, drawn_kl, lumped_kl
from scripts.quality.modes import evenly, read_texts
from scripts.quality.scoring import TOP
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"
GROUP = 32
BITS = (4, 3)
NAMES = ("full", "lumped", "drawn")
# Of each text: what is asked is a ratio, not the texts.
TOKENS = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; argparse's 2 for usage."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.quality.bound",
        description=__doc__,
        epilog="example: python -m scripts.quality.bound --texts 60",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--texts", type=int, default=40, help="of the held-out set (40)")
    top.add_argument("--json", action="store_true", help="figures as JSON (always)")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    parsed = top.parse_args(arguments)
    made, machine = now(), this_machine()
    samples = list(measured(parsed.texts))
    summary = {f"rtn-w{bits}": ratio([s for s in samples if s["bits"] == bits]) for bits in BITS}
    if parsed.record:
        record = Record(
            kind="kl-bound",
            made=made,
            command=["python", "-m", "scripts.quality.bound", *sys.argv[1:]],
            machine=machine,
            variant={},
            parameters={"model": "tiny", "top": TOP, "group": GROUP, "tokens": TOKENS},
            summary=summary,
            samples=samples,
        )
        print(add(record, MEASUREMENTS), file=sys.stderr)
    print(json.dumps(summary, indent=1))
    return 0


def ratio(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Means over tokens in nats, and as shares of the full one."""
    tokens = sum(one["tokens"] for one in samples)
    means = {name: sum(one[name] for one in samples) / tokens for name in NAMES}
    shares = {f"{name}_share": round(means[name] / means["full"], 4) for name in NAMES[1:]}
    return {name: round(mean, 6) for name, mean in means.items()} | shares


def measured(texts: int) -> Iterator[dict[str, Any]]:
    """Of each text and each width: sums of both divergences over its tokens."""
    # Built for CUDA, they cannot be loaded beside CPU torch.
    sys.modules |= {"torchvision": None, "torchaudio": None}  # type: ignore[dict-item]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    chosen = evenly(read_texts(TINY / "heldout.jsonl"), texts)
    ids = [tokenizer(text.text)["input_ids"][:TOKENS] for text in chosen]

    def distributions(bits: int | None) -> Iterator[Any]:
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        if bits:
            rounded(model, bits)
        for one in ids:
            with torch.no_grad():
                yield torch.log_softmax(model(torch.tensor([one])).logits[0, :-1], dim=-1)

    random = torch.Generator().manual_seed(SEED)
    for bits in BITS:
        for one, p, q in zip(ids, distributions(None), distributions(bits), strict=True):
            following = one[1:]
            draws = torch.multinomial(p.exp(), 1, generator=random)[:, 0].tolist()
            yield {
                "bits": bits,
                "tokens": len(following),
                "full": float((p.exp() * (p - q)).sum()),
                "lumped": sum(
                    lumped_kl(told(p[place], token).top, told(q[place], token).top)[0]
                    for place, token in enumerate(following)
                ),
                "drawn": sum(
                    drawn_kl(told(p[place], token), told(q[place], token))
                    for place, token in enumerate(draws)
                ),
            }


def told(row: Any, token: int) -> Position:
    """What a server says of one position: its most probable tokens, and the one that is there."""
    values, places = row.topk(TOP)
    top = dict(zip(places.tolist(), values.tolist(), strict=True))
    listed = token in top
    return Position(token, 0, 1, places[0].item(), top | {token: float(row[token])}, listed)


def rounded(model: Any, bits: int) -> None:
    """Round every linear weight but the head's to ``bits``, symmetric, in groups of inputs."""
    import torch

    most = 2 ** (bits - 1) - 1
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name.endswith("lm_head"):
            continue
        weight = module.weight.data
        if weight.shape[1] % GROUP:
            continue
        groups = weight.reshape(-1, GROUP)
        scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / most
        weight.copy_(((groups / scale).round().clamp(-most - 1, most) * scale).reshape_as(weight))


if __name__ == "__main__":
    sys.exit(main())
