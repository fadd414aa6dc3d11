"""Every known trap is named, every single factor that differs is found, equal records are equal."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bake.__main__ import main
from bake.errors import BakeError
from bake.explain import HASHES, Side, explain, flatten, leaves, read, render, shown
from serve import identity
from tests.bake.records import RECORD, record
from tests.serve.identities import cpu, gpu, ident


def between(a, b):
    a, b = ([one] if isinstance(one, dict) else one for one in (a, b))
    return explain(Side("a", a), Side("b", b))


TRAPS = {
    "model path string": (
        {"config/parts/model_config/factors/model": "/mnt/tiny"},
        ("model_config", "model", "/models/tiny", "/mnt/tiny"),
        "as it is spelled",
    ),
    "a place below HOME": (
        {"env/factors/VLLM_XGRAMMAR_CACHE_DIR": "/home/x/.cache/x"},
        ("environment", "VLLM_XGRAMMAR_CACHE_DIR", "/root/.cache/x", "/home/x/.cache/x"),
        "HOME or XDG_*",
    ),
    "pod-specific host": (
        {"env/factors/VLLM_P2P_SIDE_CHANNEL_HOST": "10.0.0.7"},
        ("environment", "VLLM_P2P_SIDE_CHANNEL_HOST", "localhost", "10.0.0.7"),
        "from pod to pod",
    ),
    "pod-specific prefix": (
        {"env/factors/VLLM_PROCESS_NAME_PREFIX": "pod-7"},
        ("environment", "VLLM_PROCESS_NAME_PREFIX", "VLLM", "pod-7"),
        "from pod to pod",
    ),
    "plugins": (
        {"env/factors/VLLM_PLUGINS": None},
        ("environment", "VLLM_PLUGINS", '["preheat"]', "null"),
        "changes no compiled code",
    ),
    "limits of a step": (
        {"config/parts/scheduler_config/factors/max_num_seqs": 16},
        ("scheduler_config", "max_num_seqs", "8", "16"),
        "static buffers",
    ),
    "capture sizes": (
        {"config/parts/compilation_config/factors/cudagraph_capture_sizes": [1, 4]},
        ("compilation_config", "cudagraph_capture_sizes", "[1, 2]", "[1, 4]"),
        "captured",
    ),
    "edited source file": (
        {"sources/vllm.model": {"file": "/other/model.py", "sha256": "22"}},
        ("source files", "vllm.model", "11", "22"),
        "was edited",
    ),
    "a patch that moves forward": (
        {"code/line": 101},
        ("code", "line", "100", "101"),
        "a patch moved it",
    ),
    "torch's own files": (
        {"inductor/torch_key": "cd34"},
        ("torch", "torch_key", "ab12", "cd34"),
        "torch's own source",
    ),
    "another torch": (
        {"beside/versions/torch": "2.14.0"},
        ("versions", "torch", "2.13.0", "2.14.0"),
        "bake again",
    ),
    "another python": (
        {"beside/versions/python": "3.12.1"},
        ("versions", "python", "3.11.7", "3.12.1"),
        "bake again",
    ),
    "another vLLM": (
        {"config/parts/vllm/factors/version": "0.33.0"},
        ("vllm", "version", "0.32.0", "0.33.0"),
        "",
    ),
    "device name": (
        {"inductor/system/device": {"name": "NVIDIA A40"}},
        ("inductor system", "device.name", "NVIDIA A10G", "NVIDIA A40"),
        "sibling",
    ),
    "device hash": (
        {"inductor/system/hash": "d1"},
        ("inductor system", "hash", "d0", "d1"),
        "GPU's name",
    ),
    "another CUDA": (
        {"inductor/system/version": {"cuda": "13.0"}},
        ("inductor system", "version.cuda", "12.8", "13.0"),
        "CUDA and Triton",
    ),
}


@pytest.mark.parametrize("case", TRAPS)
def test_a_known_trap_is_named_with_both_values(case):
    changes, expected, sentence = TRAPS[case]
    found = between(record(), record(hash="bb" * 32, **changes))
    assert len(found.differences) == 1, found
    only = found.differences[0]
    assert (only.group, only.factor, only.a, only.b) == expected
    assert sentence in only.trap
    assert only.graphs == ("backbone",)
    assert not found.equal


def test_another_k_is_a_danger_above_all_where_the_key_is_the_same():
    found = between(record(), record(**{"beside/num_speculative_tokens": 2}))
    assert not found.differences
    assert not found.equal
    assert "num_speculative_tokens is 4 in A and 2 in B, the same key for both" in found.dangers[0]
    assert "DANGER" in render(found)


def test_another_home_is_noted_and_changes_no_verdict():
    found = between(record(), record(**{"beside/places/HOME": "/home/x"}))
    assert found.equal
    assert found.notes == (
        "HOME differs (/root and /home/x); it is in no key, but decides where caches are looked "
        "for",
    )


def test_a_hash_alone_that_differs_is_told_and_where_to_look():
    found = between(record(), record(hash="bb" * 32))
    assert [(d.group, d.factor) for d in found.differences] == [(HASHES, "aot")]
    assert "PREHEAT_RECORD_FACTORS" in found.differences[0].trap


def test_what_differs_in_both_graphs_is_told_once():
    change = {"config/parts/model_config/factors/model": "/mnt/tiny"}
    a = [record("backbone"), record("eagle_head")]
    b = [record("backbone", **change), record("eagle_head", **change)]
    (only,) = between(a, b).differences
    assert only.graphs == ("backbone", "eagle_head")


def test_a_graph_that_only_one_side_has_is_named():
    (only,) = between([record("backbone"), record("eagle_head")], [record()]).differences
    assert (only.group, only.factor, only.a, only.b) == (
        "graphs",
        "eagle_head",
        "recorded",
        "not recorded",
    )


def test_a_graph_that_was_not_found_has_no_sources_to_compare():
    change = {"config/parts/model_config/factors/model": "/mnt/tiny"}
    missed = record(outcome="missing", sources={}, **change)
    found = between([record("backbone"), record("eagle_head")], [missed])
    assert [item.factor for item in found.differences] == ["model"]


def test_inside_a_models_config_the_key_is_named():
    config = json.dumps({"hidden_size": 256, "layer_types": ["a", "c"]})
    found = between(record(), record(**{"config/parts/model_config/factors/hf_config": config}))
    assert [d.factor for d in found.differences] == ["hf_config.layer_types"]


def test_what_no_key_holds_comes_from_the_identities():
    ours, theirs = ident(device=cpu("avx2", "avx512f")), ident(device=cpu("avx2"))
    found = explain(Side("a", [record()], ours), Side("b", [record()], theirs))
    assert [(d.factor, d.a) for d in found.differences] == [("CPU instructions", "avx512f")]
    assert "illegal instruction" in found.differences[0].trap


def test_a_gpu_of_another_name_comes_from_the_identities_too():
    a, b = ident(device=gpu("NVIDIA A10G")), ident(device=gpu("NVIDIA L4", "8.9", 58))
    found = explain(Side("a", [record()], a), Side("b", [record()], b))
    assert [d.factor for d in found.differences] == ["device name"]


def test_long_values_are_cut_around_where_they_part():
    left, right = "x" * 500 + "LEFT" + "y" * 500, "x" * 500 + "RIGHT" + "y" * 500
    a, b = shown(left, right)
    assert "LEFT" in a
    assert "RIGHT" in b
    assert max(len(a), len(b)) < 110


@st.composite
def mutations(draw):
    """One factor of the record changed, removed or added."""
    factors = flatten(RECORD)
    group, name = draw(st.sampled_from(sorted(factors)))
    return group, name, draw(st.sampled_from(["change", "remove"]))


@settings(deadline=None)
@given(mutations())
def test_any_single_factor_that_differs_is_named(mutation):
    group, name, how = mutation
    changed = mutated(copy.deepcopy(RECORD), group, name, how)
    found = between(record(), changed)
    assert (group, name) in {(d.group, d.factor) for d in found.differences}


@settings(deadline=None)
@given(st.sets(st.sampled_from(["backbone", "eagle_head", "encoder"]), min_size=1))
def test_equal_records_differ_in_nothing(graphs):
    records = [record(graph) for graph in sorted(graphs)]
    found = between(records, copy.deepcopy(records))
    assert found.equal
    assert not found.differences + found.dangers + found.notes


def mutated(made, group, name, how):
    """Change the leaf that ``flatten`` calls (group, name)."""
    homes = {
        "environment": made["env"]["factors"],
        "inductor system": made["inductor"]["system"],
        "torch": made["inductor"],
        "inductor config": made["inductor"]["inductor_config"],
        "functorch config": made["inductor"]["functorch_config"],
        "code": made["code"],
        "versions": made["beside"]["versions"],
        **{key: part["factors"] for key, part in made["config"]["parts"].items()},
    }
    if group == "source files":
        edit(made["sources"], name, how, {"file": "", "sha256": "other"})
    elif group == HASHES:
        where = {
            "aot": made,
            "env": made["env"],
            "config": made["config"],
            "code": made["code"],
            **made["config"]["parts"],
        }[name]
        edit(where, "hash", how, "other")
    else:
        at, path = homes[group], name
        while path not in at:
            head = next(key for key in at if path.startswith(f"{key}."))
            if isinstance(at[head], str):
                at[head] = json.loads(at[head])
            at, path = at[head], path.removeprefix(f"{head}.")
        edit(at, path, how, "other")
    return made


def edit(at, name, how, value):
    if how == "remove":
        del at[name]
    else:
        at[name] = value


def test_an_empty_structure_is_a_value_of_its_own():
    assert dict(leaves({"a": {}, "b": {"c": 1}, "d": []})) == {"a": {}, "b.c": 1, "d": []}


def vllms_own(folder, **env):
    at = folder / "torch_compile_cache" / "0123456789" / "rank_0_0" / "backbone"
    at.mkdir(parents=True)
    said = {"env": env, "config_hash": "c0", "code_hash": "k0", "compiler_hash": "i0"}
    (at / "cache_key_factors.json").write_text(json.dumps(said))
    return folder


def test_vllms_own_records_can_be_compared(tmp_path):
    a = vllms_own(tmp_path / "a", VLLM_PLUGINS=None, VLLM_X="1")
    b = vllms_own(tmp_path / "b", VLLM_PLUGINS=["x"], VLLM_X="1")
    assert [d.factor for d in explain(read(a), read(b)).differences] == ["VLLM_PLUGINS"]
    assert explain(read(a), read(a)).equal


def test_vllms_own_record_and_ours_are_compared_in_what_both_hold(tmp_path):
    env = RECORD["env"]["factors"] | {"VLLM_PLUGINS": None}
    theirs = read(vllms_own(tmp_path, **env)).records
    assert [d.factor for d in between(record(), list(theirs)).differences] == ["VLLM_PLUGINS"]


def left(folder, *records):
    (folder / "factors").mkdir(parents=True)
    for one in records:
        (folder / "factors" / f"{one['graph']}.json").write_text(json.dumps(one))
    return folder


def test_the_command_line_exits_0_for_equal_and_1_for_different(tmp_path, capsys):
    a = left(tmp_path / "a", record())
    b = left(tmp_path / "b", record(**{"config/parts/model_config/factors/model": "/mnt/tiny"}))
    assert main(["explain-miss", str(a), str(a / "factors")]) == 0
    assert capsys.readouterr().out == "the keys are equal\n"
    assert main(["explain-miss", str(a), str(b)]) == 1
    said = capsys.readouterr().out
    assert "model_config:\n  model  [backbone]\n    A: /models/tiny\n    B: /mnt/tiny\n" in said
    assert main(["explain-miss", str(a), str(b), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] is False
    assert told["differences"][0]["factor"] == "model"


def test_a_folder_that_does_not_exist_is_a_usage_error(tmp_path, capsys):
    a = left(tmp_path / "a", record())
    assert main(["explain-miss", str(a), str(tmp_path / "b")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_folder_without_records_says_how_to_make_some(tmp_path):
    with pytest.raises(BakeError, match="PREHEAT_RECORD_FACTORS"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "backbone.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BakeError, match=r"backbone\.json"):
        read(tmp_path)


def test_a_damaged_identity_is_named(tmp_path):
    left(tmp_path, record())
    (tmp_path / identity.FILE).write_text("{}")
    with pytest.raises(BakeError, match=r"identity\.json"):
        read(tmp_path)
