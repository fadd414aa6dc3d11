"""What was found, as a person reads it on a terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bake.checkpoint.contents import Listed, Tensor
from bake.checkpoint.inspect import Inspected
from bake.checkpoint.tokens import Tokens
from blob.files import printable

if TYPE_CHECKING:
    # Brings a compiler, which telling what was found has no need of.
    from bake.checkpoint.verify import Report

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
WIDTH = 100
# Letters of a path, which no system allows more of.
PATH = 4096
SIGNS = {"ok": "ok", "failed": "FAILED", "skipped": "–"}


def size(count: float) -> str:
    """Bytes in the unit that keeps them short."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def inspected(found: Inspected, *, tensors: bool) -> Iterator[str]:
    """Lines for ``preheat bake inspect``; everything of a file's own is made printable."""
    files = f"{len(found.files)} file(s), {size(found.bytes)}"
    yield f"{printable(found.path, PATH)}: {found.format}, {files}"
    yield f"  family        {printable(found.family)}"
    yield f"  quantization  {printable(found.quantization or 'none')}"
    if found.tokenizer:
        yield f"  tokenizer     {_tokenizer(found.tokenizer)}"
    yield f"  tensors       {len(found.tensors)}, {found.elements:,} elements"
    for dtype, total in found.totals.items():
        of = f"{total.tensors:>7} tensors {total.elements:>16,}"
        yield f"    {dtype:10} {of}  {size(total.bytes)}"
    yield f"  headers       {size(found.header_bytes)}"
    yield from (f"  {printable(note, 400)}" for note in found.notes)
    if found.metadata:
        yield "  metadata"
        for key, value in found.metadata.items():
            yield f"    {printable(key)}: {_value(value)}"
    if tensors:
        yield from _tensors(found.tensors)


def verified(report: "Report") -> Iterator[str]:
    """Lines for ``preheat bake verify-checkpoint``."""
    yield f"{printable(report.path, PATH)}: {'sound' if report.sound else 'NOT sound'}"
    for check in report.checks:
        yield f"  {check.name:11} {SIGNS[check.outcome]:7} {printable(check.detail, 600)}"


def as_json(found: Inspected, *, tensors: bool) -> dict[str, Any]:
    """The same for programs: JSON, which has no word for NaN and the infinities. They stand as
    texts: "nan", "inf", "-inf".
    """
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(
        {
            "path": found.path,
            "format": found.format,
            "files": dict(found.files),
            "bytes": found.bytes,
            "header_bytes": found.header_bytes,
            "family": found.family,
            "quantization": found.quantization,
            "tokenizer": found.tokenizer,
            "totals": found.totals,
            "elements": found.elements,
            "metadata": _plain(found.metadata),
            "notes": found.notes,
        }
    )
    if tensors:
        told["tensors"] = [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes}
            for t in found.tensors
        ]
    return told


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _spoken(value) for key, value in metadata.items()}


def _spoken(value: Any) -> Any:
    if isinstance(value, Listed):
        return {"kind": value.kind, "count": value.count}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # No parser gives lists of more than a few, or lists in lists in lists.
    return [_spoken(one) for one in value] if isinstance(value, list) else value


def _tokenizer(told: Tokens) -> str:
    parts = [f"{printable(told.kind)}, {told.tokens:,} tokens"]
    parts += [f"{told.merges:,} merges"] if told.merges else []
    parts += [f"{told.specials:,} special"] if told.specials else []
    parts += [f"bos {printable(told.bos)}"] if told.bos else []
    parts += [f"eos {printable(told.eos)}"] if told.eos else []
    parts += ["chat template"] if told.template else []
    return ", ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, Listed):
        return f"{value.count:,} × {value.kind}"
    return printable(value, WIDTH) + ("…" if len(str(value)) > WIDTH else "")


def _tensors(tensors: Sequence[Tensor]) -> Iterator[str]:
    width = min(60, max((len(tensor.name) for tensor in tensors), default=0))
    yield "  tensors"
    for tensor in tensors:
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        name = printable(tensor.name)
        yield f"    {name:{width}} {tensor.dtype:8} {shape:>16} {size(tensor.nbytes):>12}"
