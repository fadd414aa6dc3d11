"""What the loader puts into a model is what vLLM's own loader would, and nothing less is served.

Digests are vLLM's own, taken between loading and post-processing: on a CPU the latter moves the
weights of every linear layer out of sight.
"""

import json
from pathlib import Path

import pytest

from blob.errors import BlobError
from serve.command import EARLY
from tests.serve.plugin import packed
from tests.serve.plugin.fresh import python
from tests.serve.plugin.packed import TINY

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

LOADS = "from tests.serve.plugin import loads; loads.main()"
ALONE = "import sys; from serve.plugin import alone; sys.exit(alone.main(sys.argv[1:]))"
# Codecs that slices are captured in, besides raw.
LOSSY = ("int4", "int5", "q8_0")
BOTH = {"Qwen3_5ForCausalLM", "Qwen3_5MTP"}


def without_keys(tensors: dict) -> None:
    del tensors["model.layers.3.self_attn.k_proj.weight"]


def without_a_norm(tensors: dict) -> None:
    del tensors["mtp.norm.weight"]


def with_a_head(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def with_another_head(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def loaded(folder) -> dict[str, dict]:
    """Every load below, one after the other in one process without an engine."""
    codecs = ("raw", "zipnn", "int4", "int5", "q6_k", "q4_k")
    blobs = {codec: str(packed.blob(folder / codec, codec)) for codec in codecs}
    changed = {
        change.__name__: packed.checkpoint(folder / f"of-{change.__name__}", change)
        for change in (without_keys, without_a_norm, with_a_head, with_another_head)
    }
    for name, checkpoint in changed.items():
        blobs[name] = str(packed.blob(folder / name, "raw", checkpoint))
    blobs["q6_k with_another_head"] = str(
        packed.blob(folder / "q6_k-another", "q6_k", changed["with_another_head"])
    )
    blobs["damaged"] = str(packed.blob(folder / "damaged", "int5"))
    packed.damage(folder / "damaged", "model.layers.2.mlp.up_proj.weight")
    stock = {"load_format": "auto"}
    jobs = {
        "stock": {"model": str(TINY), **stock},
        **{name: {"model": path} for name, path in blobs.items()},
        "stock int4": {"model": blobs["int4"], **stock},
        "stock with_a_head": {"model": str(changed["with_a_head"]), **stock},
        "stock with_another_head": {"model": str(changed["with_another_head"]), **stock},
        "in situ q6_k": {"model": str(TINY), "extra": {"quantize": "q6_k"}},
        "in situ with_another_head": {
            "model": str(changed["with_another_head"]),
            "extra": {"quantize": "q6_k"},
        },
        "in situ int5": {"model": str(TINY), "extra": {"quantize": "int5", "group": 128}},
        "a checkpoint": {"model": str(TINY)},
        "a blob again": {"model": blobs["raw"], "extra": {"quantize": "q6_k"}},
        "unknown codec": {"model": str(TINY), "extra": {"quantize": "q7_k"}},
        "unknown option": {"model": blobs["raw"], "extra": {"quantise": "q6_k"}},
        "no number": {"model": blobs["raw"], "extra": {"threads": "2"}},
    }
    given = json.dumps([{**job, "drafts": 2} for job in jobs.values()])
    done = python(LOADS, EARLY, given)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(jobs, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("raw", "stock"),
        ("zipnn", "stock"),
        ("int4", "stock int4"),
        ("with_a_head", "stock with_a_head"),
        ("with_another_head", "stock with_another_head"),
        ("q6_k", "in situ q6_k"),
        ("int5", "in situ int5"),
        ("q6_k with_another_head", "in situ with_another_head"),
    ],
)
def test_every_parameter_of_model_and_drafter_is_the_same(loaded, ours, theirs) -> None:
    assert loaded[ours]["refused"] == loaded[theirs]["refused"] == ""
    assert loaded[ours]["digests"].keys() == BOTH
    assert loaded[ours]["digests"] == loaded[theirs]["digests"]


@pytest.mark.parametrize("codec", ["int4", "int5", "q4_k", "q6_k"])
def test_a_codec_that_loses_bits_makes_other_weights(loaded, codec) -> None:
    assert loaded[codec]["refused"] == ""
    assert loaded[codec]["digests"] != loaded["stock"]["digests"]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("without_keys", "not in these weights: model.layers.3.self_attn.qkv_proj.weight (163840 "),
        ("without_a_norm", "not in these weights: model.norm.weight (0 of 256 numbers)"),
        ("damaged", "model.layers.2.mlp.up_proj.weight: "),
        ("a checkpoint", "no blob: no manifest.json"),
        ("a blob again", "a blob is quantized already"),
        ("unknown codec", "unknown codec 'q7_k'"),
    ],
)
def test_what_is_not_whole_or_not_ours_is_refused_by_name(loaded, case, why) -> None:
    assert loaded[case]["refused"].startswith("WeightsError: ")
    assert why in loaded[case]["refused"]


@pytest.mark.parametrize(
    ("case", "why"), [("unknown option", "not 'quantise'"), ("no number", "threads must be")]
)
def test_options_are_checked_before_anything_is_read(loaded, case, why) -> None:
    assert why in loaded[case]["refused"]


def test_a_drafter_is_given_only_what_it_takes(loaded) -> None:
    model, drafter = loaded["int5"]["reports"]
    assert (model["drafter"], drafter["drafter"]) == (False, True)
    # 70 tensors in all: 15 of the drafter's own, and the embedding for both.
    assert (model["tensors"], drafter["tensors"]) == (55, 16)


@pytest.mark.parametrize(
    ("case", "phases"),
    [
        ("raw", {"map", "verify", "wait", "copy"}),
        ("int4", {"map", "verify", "wait", "copy"}),
        ("int5", {"map", "decode", "verify", "wait", "copy"}),
        ("in situ int5", {"map", "read", "encode", "decode", "wait", "copy"}),
    ],
)
def test_a_load_tells_its_phases_and_bytes(loaded, case, phases) -> None:
    """A phase that nothing went through is none: INT4 goes to vLLM as it is stored."""
    report = loaded[case]["reports"][0]
    assert set(report["seconds"]) == phases
    assert report["bytes_out"] > (6_000_000 if case == "int4" else 13_000_000)
    assert report["bytes_stored"] <= report["bytes_out"]


def test_parameters_that_were_written_in_part_are_told() -> None:
    import torch

    from serve.plugin.filling import Written

    model = torch.nn.Linear(4, 4)
    model.replaced = torch.nn.Parameter(torch.empty(3))
    model.untouched = torch.nn.Parameter(torch.empty(0))
    written = Written(model)
    with written, torch.no_grad():
        model.weight[:2] = torch.ones(2, 4)
        model.weight.data[2:].fill_(1)
        model.bias.data.narrow(0, 0, 3).copy_(torch.ones(3))
        model.replaced.data = torch.ones(5)
    assert written.not_whole(model) == ["bias (3 of 4 numbers)"]


def test_an_array_is_a_tensor_over_the_same_memory_and_back() -> None:
    import numpy as np
    import torch

    from serve.plugin.filling import DTYPES, to_array, to_tensor

    bits = np.array([[0x3F80, 0xC000]], np.uint16)
    tensor = to_tensor(bits, "BF16")
    assert tensor.tolist() == [[1.0, -2.0]]
    bits[0, 0] = 0
    assert tensor[0, 0] == 0
    assert to_array(tensor).tolist() == bits.tolist()
    for name, dtype in DTYPES.items():
        some = torch.zeros((2, 3), dtype=dtype)
        assert torch.equal(
            to_tensor(to_array(some), name).view(torch.uint8), some.view(torch.uint8)
        )


def test_no_tensor_is_held_while_the_next_one_is_made() -> None:
    import gc
    import weakref

    import torch

    from serve.plugin.filling import Waited

    made: list[weakref.ref] = []

    def weights():
        for number in range(3):
            gc.collect()
            assert not any(ref() is not None for ref in made)
            tensor = torch.full((2,), number)
            made.append(weakref.ref(tensor))
            yield "x", tensor
            del tensor

    waited = Waited()
    for _, tensor in waited.over(weights()):
        del tensor
    assert waited.tensors == len(made) == 3


def test_threads_run_where_the_parent_may_and_come_back() -> None:
    import os

    from serve.plugin.filling import all_cores

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with all_cores():
            assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid()) | {min(before)}
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_the_fingerprint_of_a_checkpoint_is_that_of_its_raw_blob(tmp_path) -> None:
    from blob import manifest
    from serve.plugin.sources import CheckpointSource

    packed.blob(tmp_path / "blob")
    assert CheckpointSource(TINY).fingerprint() == manifest.read(tmp_path / "blob").fingerprint


def indexed(folder: Path, index: str) -> Path:
    import shutil

    shutil.copytree(TINY, folder)
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("{", "index.json: not JSON: "),
        ("[" * 100_000, "index.json: not JSON: "),
        ("[]", "index.json: no 'weight_map' of tensors and files"),
        ('{"metadata": {}}', "index.json: no 'weight_map' of tensors and files"),
        ('{"weight_map": {"x": 1}}', "index.json: x: expected the name of a file .* got 1"),
        ('{"weight_map": {"x": "../of/model.safetensors"}}', "got ../of/model.safetensors"),
        ('{"weight_map": {"x": "/model.safetensors"}}', "got /model.safetensors"),
        ('{"weight_map": {"x": ".."}}', "x: expected the name of a file beside it, got .."),
    ],
)
def test_an_index_that_is_none_or_leads_elsewhere_is_refused(tmp_path, index, why) -> None:
    from serve.plugin.sources import CheckpointSource

    with pytest.raises(BlobError, match=why):
        CheckpointSource(indexed(tmp_path / "of", index))


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ('{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors: cannot be read: "),
        ('{"weight_map": {"x": "model.safetensors"}}', "model.safetensors: cannot be read: .*x"),
    ],
)
def test_an_index_of_what_is_not_there_is_told_by_the_file(tmp_path, index, why) -> None:
    from serve.plugin.sources import CheckpointSource

    source = CheckpointSource(indexed(tmp_path / "of", index))
    with pytest.raises(BlobError, match=why):
        list(source.stream(["x"]))


def test_what_is_no_safetensors_is_told_by_its_name(tmp_path) -> None:
    from serve.plugin.sources import CheckpointSource

    (tmp_path / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(BlobError, match=r"model\.safetensors: cannot be read: "):
        CheckpointSource(tmp_path)


@pytest.mark.parametrize(("change", "same"), [(with_a_head, True), (with_another_head, False)])
def test_a_checkpoint_says_truly_whether_its_head_is_its_embedding(tmp_path, change, same) -> None:
    from serve.plugin.sources import CheckpointSource

    source = CheckpointSource(packed.checkpoint(tmp_path / "of", change))
    assert source.same("lm_head.weight", "model.embed_tokens.weight") is same


TIED = """
import sys, torch
from pathlib import Path
from serve.plugin.patches import TORCHVISION_OPS, apply_all
apply_all([TORCHVISION_OPS])
from serve.plugin.sources import CheckpointSource
from serve.plugin.weights import wanted
model = torch.nn.Module()
model.model = torch.nn.Module()
model.model.embed_tokens = model.lm_head = torch.nn.Embedding(1, 1)
print("taken:", "lm_head.weight" in wanted(model, CheckpointSource(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_a_head, "taken: False"),
        (with_another_head, "lm_head.weight: config.json ties it to model."),
    ],
)
def test_a_tied_head_that_differs_is_not_dropped_unseen(tmp_path, change, said) -> None:
    done = python(TIED, EARLY, str(packed.checkpoint(tmp_path / "of", change)))
    assert said in done.stdout + done.stderr


WITHOUT_NUMBA = """
import sys
from pathlib import Path
from serve.plugin.patches import TORCHVISION_OPS, apply_all
apply_all([TORCHVISION_OPS])
from vllm.model_executor.model_loader import BaseModelLoader
theirs = "numba" in sys.modules
from blob.blob import Blob
from serve.plugin import ranks, weights
source = weights.BlobSource(Blob.open(Path(sys.argv[1])))
assert sum(tensor.nbytes for _, tensor in source.stream(source.names())) > 13_000_000
print("ours:", "numba" in sys.modules and not theirs)
"""


def test_a_raw_blob_is_read_without_numba(tmp_path) -> None:
    """Unless vLLM has imported it."""
    done = python(WITHOUT_NUMBA, EARLY, str(packed.blob(tmp_path / "raw")))
    assert done.returncode == 0, done.stderr
    assert "ours: False" in done.stdout


def ranked(folder: Path, names: list[str], codec: str = "raw", **rank) -> Path:
    """A folder of ranks, each with one small tensor."""
    import numpy as np

    from blob.manifest import Rank
    from blob.recipe import Recipe, choose
    from blob.store import Store
    from blob.writer import About, Plain, write

    for name in names:
        said = {"rank": int(name.split("-")[1]), "world": 2, "topology": "tp2 pp1"}
        about = About({"codec": codec}, rank=Rank(**{**said, "model": "a" * 64, **rank}))
        tensor = Plain(
            "x", "BF16", np.zeros((2, 2), np.uint16), choose("x", (2, 2), "BF16", Recipe("raw"))
        )
        (folder / name).mkdir(parents=True)
        write(folder / name, [tensor], Store(folder.parent / "store"), about)
    return folder


def here(**other):
    from serve.plugin.ranks import Here

    return Here(**{"rank": 0, "world": 2, "topology": "tp2 pp1", **other})


def test_a_rank_opens_its_own_slices(tmp_path) -> None:
    from serve.plugin import ranks

    folder = ranked(tmp_path / "ranked", ["rank-0-of-2", "rank-1-of-2", "drafter-1-of-2"])
    own = ranks.find(folder, here(rank=1), drafter=False)
    assert own == folder / "rank-1-of-2"
    assert ranks.opened(folder, own, here(rank=1)).manifest.rank.rank == 1
    assert ranks.find(folder, here(rank=1), drafter=True) == folder / "drafter-1-of-2"


def test_another_world_is_refused_with_what_there_is(tmp_path) -> None:
    from serve.plugin import ranks

    folder = ranked(tmp_path / "ranked", ["rank-0-of-2", "rank-1-of-2"])
    with pytest.raises(BlobError, match="expected rank-0-of-1, got rank-0-of-2, rank-1-of-2"):
        ranks.find(folder, here(world=1, topology="tp1 pp1"), drafter=False)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"rank": 1}, "rank: expected 0, got 1"),
        ({"world": 4}, "world: expected 2, got 4"),
        ({"topology": "tp1 pp2"}, "topology: expected tp2 pp1, got tp1 pp2"),
        ({"model": "b" * 64}, f"model: expected {'a' * 64}, got {'b' * 64}"),
    ],
)
def test_what_another_rank_or_model_left_is_refused_with_both_values(tmp_path, said, why) -> None:
    from serve.plugin import ranks

    folder = ranked(tmp_path / "ranked", ["rank-1-of-2"])
    ranked(folder, ["rank-0-of-2"], **said)
    with pytest.raises(BlobError, match=why):
        ranks.opened(folder, folder / "rank-0-of-2", here())


@pytest.mark.parametrize("other", ["rank-1-of-2", "drafter-0-of-2"])
def test_slices_of_another_recipe_are_refused_with_both(tmp_path, other) -> None:
    from serve.plugin import ranks

    folder = ranked(tmp_path / "ranked", ["rank-0-of-2"])
    ranked(folder, [other], codec="q8_0")
    why = r"rank-0-of-2: recipe: expected {'codec': 'q8_0'}, got {'codec': 'raw'}"
    with pytest.raises(BlobError, match=why):
        ranks.opened(folder, folder / "rank-0-of-2", here())


def test_a_whole_model_is_no_rank(tmp_path) -> None:
    from serve.plugin import ranks

    packed.blob(tmp_path / "rank-0-of-2")
    with pytest.raises(BlobError, match="got a whole model"):
        ranks.opened(tmp_path, tmp_path / "rank-0-of-2", here())


@pytest.mark.parametrize(
    ("shape", "dtype", "extra", "why"),
    [
        ((3, 4), "float32", False, r"weight: expected F32 \[3, 4\], got F32 \[4, 4\]"),
        ((4, 4), "bfloat16", False, r"weight: expected BF16 \[4, 4\], got F32 \[4, 4\]"),
        ((4, 4), "float32", True, "extra: expected F32 .*, got nothing"),
    ],
)
def test_slices_for_other_parameters_are_refused(tmp_path, shape, dtype, extra, why) -> None:
    """Where vLLM's own sharded format copies into a part, with a warning."""
    import torch

    from blob import manifest
    from blob.recipe import Recipe, choose
    from blob.store import Store
    from blob.writer import About, Plain, write
    from serve.plugin import ranks
    from serve.plugin.filling import to_array

    saved = ranks.places(torch.nn.Linear(4, 4, bias=False))
    choice = choose("weight", (4, 4), "F32", Recipe("raw"))
    tensors = [Plain(name, "F32", to_array(tensor), choice) for name, tensor in saved.items()]
    write(tmp_path / "blob", tensors, Store(tmp_path / "store"), About({"codec": "raw"}))
    model = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=getattr(torch, dtype))
    if extra:
        model.register_buffer("extra", torch.zeros(1))
        model.register_buffer("not_saved", torch.zeros(1), persistent=False)
    with pytest.raises(BlobError, match=why):
        ranks.check_parameters(model, manifest.read(tmp_path / "blob"))


@pytest.fixture(scope="module")
def captured(folder) -> Path:
    """Two ranks, each a process, that write what vLLM sliced for them, as ``bake shard`` starts."""
    out = folder / "ranked"
    job = {"model": str(TINY), "world": 2, "drafts": 2, "extra": {"capture": str(out)}}
    meet = str(folder / "capture")
    at_once([json.dumps({**job, "rank": rank, "meet": meet}) for rank in (0, 1)], ALONE)
    return with_files_of(TINY, out)


def with_files_of(model: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((model / name).read_bytes())
    return out


def at_once(arguments: list[str], code: str) -> list[str]:
    """Each in a process; what they print last."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(arguments)) as pool:
        done = list(pool.map(lambda argument: python(code, EARLY, argument), arguments))
    for one in done:
        assert one.returncode == 0, one.stderr[-4000:]
    return ["".join(one.stdout.splitlines()[-1:]) for one in done]


def by_two_ranks(jobs: dict[str, dict], meet: Path) -> dict[str, list[dict]]:
    """Each job by ranks 0 and 1, which are a process each for all of them."""
    given = [
        [{**job, "world": 2, "drafts": 2, "rank": rank, "meet": str(meet)} for job in jobs.values()]
        for rank in (0, 1)
    ]
    told = [json.loads(line) for line in at_once([json.dumps(one) for one in given], LOADS)]
    return dict(zip(jobs, map(list, zip(*told, strict=True)), strict=True))


@pytest.fixture(scope="module")
def two(captured, folder) -> dict[str, list[dict]]:
    """What each of two ranks had in the end; some of these loads make the slices of others."""
    int4 = packed.blob(folder / "int4 for two", "int4")
    stock = {"load_format": "auto"}
    made = {codec: with_files_of(TINY, folder / f"ranked {codec}") for codec in LOSSY}
    of_packed = with_files_of(int4, folder / "ranked of packed")
    theirs = {
        "stock": {"model": str(TINY), **stock},
        "stock int4": {"model": str(int4), **stock},
        **{
            f"capture {codec}": {"model": str(TINY), "extra": {"capture": str(at), "codec": codec}}
            for codec, at in made.items()
        },
        "capture of packed": {"model": str(int4), "extra": {"capture": str(of_packed)}},
    }
    ours = {
        "raw": {"model": str(captured)},
        **{codec: {"model": str(at)} for codec, at in made.items()},
        "of packed": {"model": str(of_packed)},
    }
    first = by_two_ranks(theirs, folder / "theirs")
    return {**first, **by_two_ranks(ours, folder / "ours")}


def digests(ranks: list[dict]) -> list[dict]:
    assert [one["refused"] for one in ranks] == ["", ""]
    return [one["digests"] for one in ranks]


@pytest.mark.parametrize(("ours", "theirs"), [("raw", "stock"), ("of packed", "stock int4")])
def test_each_rank_has_from_its_own_slices_what_vllm_would_slice(two, ours, theirs) -> None:
    assert digests(two[ours]) == digests(two[theirs])
    assert two[ours][0]["digests"] != two[ours][1]["digests"]
    for one in two[ours]:
        model = one["reports"][0]
        assert model["from"] == "rank"
        # Nothing but its own: about half of the model's 13.7 MB.
        assert model["bytes_stored"] < 7_000_000


@pytest.mark.parametrize("codec", LOSSY)
def test_slices_that_were_quantized_are_given_back_whole(two, folder, codec) -> None:
    """INT4, too: the parameters of a model that is not packed are none of vLLM's packed ones."""
    from blob import manifest

    for rank, models in enumerate(digests(two[codec])):
        assert models != two["stock"][rank]["digests"]
        for kind, model in (("rank", "Qwen3_5ForCausalLM"), ("drafter", "Qwen3_5MTP")):
            made = manifest.read(folder / f"ranked {codec}" / f"{kind}-{rank}-of-2")
            assert {tensor.codec for tensor in made.tensors} == {"raw", codec}
            written = {tensor.name: tensor.sha256 for tensor in made.tensors}
            assert models[model].items() <= written.items()


def test_one_rank_refuses_the_slices_of_two(captured) -> None:
    (line,) = at_once([json.dumps([{"model": str(captured)}])], LOADS)
    refused = json.loads(line)[0]["refused"]
    assert "expected rank-0-of-1, got drafter-0-of-2, drafter-1-of-2, rank-0-of-2" in refused
