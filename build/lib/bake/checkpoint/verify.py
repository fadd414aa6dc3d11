"""Whether a checkpoint folder is whole and fits together, before an hour is spent on it.

Each question is a check of its own, and all are asked: a person sees every fault at once. What
cannot be asked (an unknown family, no tokenizer) is told as such, and is no fault.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint import families, schemes, tokens
from bake.checkpoint.arrays import array
from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant.ggml import BLOCKS, dequantize
from bake.checkpoint.folder import CONFIG, Found, Located, Shard, find, open_shard, reader
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.output import Output
from bake.checkpoint.settings import settings_of
from bake.errors import BakeError
from bake.progress import silent
from blob.files import digest, opened
from blob.rows import cores

Outcome = Literal["ok", "failed", "skipped"]
Progress = Callable[[int, int], None]
# Faults of one check that are told by name; the rest are counted.
TOLD = 5
# What a sampled check reads of a tensor: its beginning, its end, and stretches between.
STRETCHES, STRETCH_BYTES = 8, 64 * 1024
PIECE_BYTES = 2 * 1024**2
EXPONENTS: Mapping[str, tuple[Any, int, int]] = {
    # dtype: an unsigned type of its width, and in Inf and NaN these bits are those.
    "BF16": (np.uint16, 0x7F80, 0x7F80),
    "F16": (np.uint16, 0x7C00, 0x7C00),
    "F32": (np.uint32, 0x7F800000, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000, 0x7FF0000000000000),
    # E4M3 has no Inf, and NaN in one place of each sign; those of AMD in that of a negative zero;
    # E8M0, of scales, has NaN alone (OCP MX 1.0, 5.3 and 5.4).
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
    "F8_E5M2": (np.uint8, 0x7C, 0x7C),
    "F8_E4M3FNUZ": (np.uint8, 0xFF, 0x80),
    "F8_E5M2FNUZ": (np.uint8, 0xFF, 0x80),
    "F8_E8M0": (np.uint8, 0xFF, 0xFF),
}
# What older tools wrote beside the weights, and vLLM passes over: computed frequencies, a head that
# is tied. And the biases that GPTQ's tools add to layers which have none, all zeros.
SPARE = (".rotary_emb.inv_freq", "lm_head.weight")
ADDED, ADDED_BYTES = ".bias", 16 * 1024**2
# Of a file of digests.
DIGESTS_BYTES = 16 * 1024**2
EMBEDDING = (
    "embed_tokens.weight",
    "token_embd.weight",
    "wte.weight",
    "tok_embeddings.weight",
    "word_embeddings.weight",
)


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Report:
    """Every check, in order."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing failed."""
        return all(check.outcome != "failed" for check in self.checks)


@dataclass(frozen=True)
class _Opened:
    found: Found
    shards: tuple[Shard, ...]
    faults: tuple[str, ...] = ()
    # Where each tensor is; of one that stands twice, the first.
    there: Located = field(default_factory=dict)


def verify(  # noqa: PLR0913 - what, how much of it, and how
    path: Path,
    *,
    full: bool = False,
    digests: Mapping[str, str] | None = None,
    progress: Progress = silent,
    threads: int | None = None,
    limits: ParseLimits = DEFAULT,
) -> Report:
    """Ask everything of the checkpoint at ``path``. ``full`` reads every number, not a sample;
    ``digests`` are SHA-256 by file name.

    :raises BakeError: nothing is there that could be asked.
    """
    opened = _open(find(path), limits)
    checks = [
        _check("shards", opened.faults, _shards_told(opened)),
        _check_index(opened),
        _check(
            "duplicates", list(_twice(opened)), f"{len(opened.there)} tensors, none in two files"
        ),
        _check_shapes(opened),
        _check_tokenizer(opened),
        _check_numbers(opened, full, progress, threads or cores()),
        _check_digests(opened, digests),
    ]
    return Report(path, tuple(checks))


def read_digests(path: Path) -> dict[str, str]:
    """``sha256sum``'s own form: a digest and a file name in each line.

    :raises BakeError: a line is neither, or it is no plain file.
    """
    found = {}
    try:
        with opened(path.resolve()) as file:
            raw = file.read(DIGESTS_BYTES + 1) or b""
        lines = raw.decode().splitlines()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise BakeError(f"{path}: cannot be read: {error}", "see sha256sum") from error
    if len(raw) > DIGESTS_BYTES:
        raise BakeError(f"{path}: is larger than {DIGESTS_BYTES} bytes", "see sha256sum")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        sha256, _, name = line.strip().partition(" ")
        if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef") or not name.strip():
            raise BakeError(f"{path}: line {number} is no SHA-256 and file name", "see sha256sum")
        found[name.strip().lstrip("*").removeprefix("./")] = sha256.lower()
    return found


def _open(found: Found, limits: ParseLimits) -> _Opened:
    shards, faults = [], [f"{name} is missing" for name in found.missing]
    for path in found.weights:
        try:
            shards.append(open_shard(path, limits))
        except BakeError as error:
            faults.append(error.what)
    there: dict[str, tuple[Shard, Tensor]] = {}
    for shard in shards:
        for tensor in shard.contents.tensors:
            there.setdefault(tensor.name, (shard, tensor))
    return _Opened(found, tuple(shards), tuple(faults), there)


def _check(name: str, faults: Sequence[str], well: str) -> Check:
    if not faults:
        return Check(name, "ok", well)
    more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
    return Check(name, "failed", "; ".join(faults[:TOLD]) + more)


def _shards_told(opened: _Opened) -> str:
    size = sum(shard.source.size for shard in opened.shards)
    formats = ", ".join(sorted({shard.contents.format for shard in opened.shards}))
    return f"{len(opened.shards)} files of {formats}, {size} bytes, headers sound"


def _check_index(opened: _Opened) -> Check:
    found = opened.found
    if not found.index:
        return Check("index", "skipped", "no index: a single file, or files that need none")
    faults = []
    for name, file in sorted(found.listed.items()):
        if name not in opened.there:
            faults.append(f"{name} is in no file ({file} should hold it)")
        elif (got := opened.there[name][0].path.name) != file:
            faults.append(f"{name} is in {got}, the index says {file}")
    faults += [f"{name} is not in the index" for name in opened.there if name not in found.listed]
    return _check("index", faults, f"{len(found.listed)} tensors where {found.index} says")


def _twice(opened: _Opened) -> Iterator[str]:
    for shard in opened.shards:
        for tensor in shard.contents.tensors:
            first = opened.there[tensor.name][0]
            if first is not shard:
                yield f"{tensor.name} is in {first.path.name} and in {shard.path.name}"


def _check_shapes(opened: _Opened) -> Check:
    try:
        config, outputs = _would_be(opened)
        expected = families.expected(config)
    except BakeError as error:
        return Check("shapes", "failed", error.what)
    if not config:
        return Check("shapes", "skipped", f"no {CONFIG}")
    if expected is None:
        known = ", ".join(families.known())
        said = str(config.get("model_type", "unknown"))[:40]
        return Check("shapes", "skipped", f"model type {said} is not known; known: {known}")
    zeros = _added(opened, expected)
    shapes = {output.name: output.shape for output in outputs if output.name not in zeros}
    return _check(
        "shapes", list(_misfits(expected, shapes)), f"{len(expected)} tensors as {CONFIG} says"
    )


def _would_be(opened: _Opened) -> tuple[Mapping[str, Any], Sequence[Output]]:
    """The config, and every tensor as it would be without its quantization."""
    if len(opened.shards) == 1 and opened.shards[0].contents.format == "gguf":
        gguf = families.plan(opened.shards[0].contents, opened.shards[0].source)
        config: Mapping[str, Any] = json.loads(gguf.files[CONFIG])
        return config, gguf.outputs
    tensors = {name: tensor for name, (_, tensor) in opened.there.items()}
    made = schemes.plan(tensors, opened.found.config, reader(opened.there))
    return opened.found.config, made


def _added(opened: _Opened, expected: Mapping[str, Any]) -> set[str]:
    """Names of the biases that GPTQ's tools add to layers which have none: zeros, or else what is
    served would be another model.
    """
    settings = settings_of(opened.found.config)
    if not isinstance(settings, Mapping) or settings.get("quant_method") != "gptq":
        return set()
    return {
        name
        for name, (shard, tensor) in opened.there.items()
        if name.endswith(ADDED) and name not in expected and _zeros(shard, tensor)
    }


def _zeros(shard: Shard, tensor: Tensor) -> bool:
    if tensor.dtype not in EXPONENTS or tensor.nbytes > ADDED_BYTES:
        return False
    try:
        stored = np.ascontiguousarray(array(shard.source, tensor)).reshape(-1)
    except BakeError:
        # Told where numbers are asked for.
        return False
    kind = EXPONENTS[tensor.dtype][0]
    # Without the sign, which a zero may have.
    return not (stored.view(kind) << kind(1)).any()


def _misfits(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    yield from families.misfits(expected, shapes)
    for name in shapes:
        if name not in expected and not name.endswith(SPARE):
            yield f"{name} is of no part of the model"


def _check_tokenizer(opened: _Opened) -> Check:
    try:
        told = tokens.of_folder(opened.found.files)
        if opened.shards and opened.shards[0].contents.format == "gguf":
            told = tokens.of_gguf(opened.shards[0].contents)
    except BakeError as error:
        return Check("tokenizer", "failed", error.what)
    if told is None:
        return Check("tokenizer", "skipped", f"no {tokens.TOKENIZER}")
    found = {name: tensor.shape for name, (_, tensor) in opened.there.items() if _embeds(name)}
    if none := [name for name, shape in found.items() if not shape]:
        return Check("tokenizer", "failed", f"{none[0]} is one number, and no embedding")
    rows = {name: shape[0] for name, shape in found.items()}
    if not rows:
        return Check("tokenizer", "skipped", "no embedding by a name that is known")
    faults = [
        f"the highest id is {told.highest}, {name} has {count} rows"
        for name, count in rows.items()
        if told.highest >= count
    ]
    said = _size_said(opened.found.config)
    faults += [
        f"{CONFIG} says vocab_size {said}, {name} has {count} rows"
        for name, count in rows.items()
        if said is not None and count < said
    ]
    most = max(rows.values())
    return _check("tokenizer", faults, f"{told.tokens} tokens, {most} rows of embeddings")


def _embeds(name: str) -> bool:
    return name.endswith(EMBEDDING)


def _size_said(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    for told in (config, inner if isinstance(inner, dict) else {}):
        if type(said := told.get("vocab_size")) is int:
            return said
    return None


def _check_numbers(opened: _Opened, full: bool, progress: Progress, threads: int) -> Check:
    asked = [
        (shard, tensor)
        for shard, tensor in opened.there.values()
        if (tensor.dtype in EXPONENTS or tensor.dtype in BLOCKS) and tensor.count
    ]
    total, done = sum(tensor.nbytes for _, tensor in asked), 0
    faults = []
    with ThreadPoolExecutor(threads) as pool:
        answers = pool.map(lambda one: _not_finite(*one, full=full), asked)
        for (_, tensor), answer in zip(asked, answers, strict=True):
            faults += [f"{tensor.name}: {answer}"] if answer else []
            done += tensor.nbytes
            progress(done, total)
    rest = len(opened.there) - len(asked)
    how = f"{total} bytes read" if full else "a sample of each read, --full reads all"
    also = f"; {rest} of whole numbers not asked" if rest else ""
    return _check("finite", faults, f"{len(asked)} tensors, no NaN, no Inf: {how}{also}")


def _not_finite(shard: Shard, tensor: Tensor, *, full: bool) -> str:
    """What is not finite in a tensor; empty if all that was looked at is."""
    try:
        stored = array(shard.source, tensor)
    except BakeError as error:
        return error.what
    rows = stored if tensor.dtype in BLOCKS else np.ascontiguousarray(stored).reshape(-1)
    with np.errstate(all="ignore"):
        for some in _stretches(len(rows), rows[:1].nbytes, full=full):
            bits, mask, wrong = _exponents(rows[some], tensor)
            if count := int(np.count_nonzero((bits & mask) == wrong)):
                unit = "row" if tensor.dtype in BLOCKS else "element"
                return f"{count} numbers not finite, from {unit} {some.start} on"
    shard.source.forget(tensor.offset, tensor.offset + tensor.nbytes)
    return ""


def _exponents(stored: NDArray[Any], tensor: Tensor) -> tuple[NDArray[Any], Any, Any]:
    """Bits of numbers, which of them tell Inf and NaN, and what they are then."""
    if tensor.dtype not in BLOCKS:
        kind, mask, wrong = EXPONENTS[tensor.dtype]
        return stored.view(kind), kind(mask), kind(wrong)
    numbers: NDArray[np.uint16] = np.empty((len(stored), tensor.shape[-1]), np.uint16)
    dequantize(tensor.dtype, stored, numbers, 1)
    kind, mask, wrong = EXPONENTS["BF16"]
    return numbers, kind(mask), kind(wrong)


def _stretches(count: int, width: int, *, full: bool) -> Iterable[slice]:
    """Slices of ``count`` things of ``width`` bytes: all of them, or some from end to end."""
    if full or count * width <= STRETCHES * STRETCH_BYTES:
        step = max(1, PIECE_BYTES // width)
        return (slice(begin, begin + step) for begin in range(0, count, step))
    stretch = max(1, STRETCH_BYTES // width)
    begins = np.linspace(0, count - stretch, STRETCHES).astype(np.int64)
    return (slice(int(begin), int(begin) + stretch) for begin in begins)


def _check_digests(opened: _Opened, digests: Mapping[str, str] | None) -> Check:
    if digests is None:
        return Check("digests", "skipped", "none given; --digests takes what sha256sum writes")
    folder = opened.found.path if opened.found.path.is_dir() else opened.found.path.parent
    faults = []
    for name, expected in sorted(digests.items()):
        try:
            got, _ = digest((folder / name).resolve(), 1 << 62)
        # A NUL in a name, and links that lead to themselves.
        except (OSError, ValueError, RuntimeError) as error:
            faults.append(f"{name}: cannot be read: {getattr(error, 'strerror', '') or error}")
            continue
        if got != expected:
            faults.append(f"{name}: expected {expected[:12]}…, got {got[:12]}…")
    unlisted = [path.name for path in opened.found.weights if path.name not in digests]
    faults += [f"{name} has no digest" for name in unlisted]
    return _check("digests", faults, f"{len(digests)} files as their SHA-256 says")
