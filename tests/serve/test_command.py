import json
from dataclasses import replace
from pathlib import Path

import pytest

from serve.command import Command, Place, build, engine_environment, fit, served_names
from serve.counts import Counts
from serve.errors import ConfigError
from serve.model import Model, Packed
from serve.target import Target
from serve.variant import Variant

PLACE = Place(Path("/env/bin/python"), Path("/cache/v"), Path("/run/engine.sock"))
CPU = Target.model_validate({"NAME": "cpu", "DEVICE": "cpu", "DEFAULT_MODEL": "m"})
GPU = Target.model_validate({"NAME": "gpu", "DEVICE": "cuda", "DEFAULT_MODEL": "m"})
MTP = {"speculative_method": "mtp", "num_speculative_tokens": 1}


def variant(**levers: object) -> Variant:
    upper = {name.upper(): value for name, value in levers.items()}
    return Variant.model_validate({"NAME": "v", "SUMMARY": "s", **upper})


def model(*, has_mtp: bool = True, language_model_only: bool = False) -> Model:
    return Model("m", Path("/weights/m"), "A", 1, has_mtp, language_model_only)


def unable(target: Target, **reasons: str) -> Target:
    return target.model_copy(update=reasons)


def after(command: Command, flag: str) -> list[str]:
    """The words that follow ``flag``, up to the next one."""
    words = command.argv[command.argv.index(flag) + 1 :]
    end = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:end])


def test_a_variant_without_levers_says_only_what_must_be_said() -> None:
    command = build(variant(), model(), GPU, PLACE)
    assert command.argv == (
        "/env/bin/python",
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        "--model",
        "/weights/m",
        "--served-model-name",
        "m",
        "m:v",
        "--dtype",
        "bfloat16",
        "--uds",
        "/run/engine.sock",
    )
    assert command.dropped == ()
    assert command.socket == PLACE.socket


@pytest.mark.parametrize(
    ("levers", "flag", "words"),
    [
        ({"max_model_len": 4096}, "--max-model-len", ["4096"]),
        ({"max_num_seqs": 8}, "--max-num-seqs", ["8"]),
        ({"max_num_batched_tokens": 512}, "--max-num-batched-tokens", ["512"]),
        ({"cudagraph_capture_sizes": (1, 2)}, "--cudagraph-capture-sizes", ["1", "2"]),
        ({"enable_prefix_caching": False}, "--no-enable-prefix-caching", []),
        ({"dtype": "float16"}, "--dtype", ["float16"]),
        (
            {"repetition_penalty": 1.05},
            "--override-generation-config",
            ['{"repetition_penalty":1.05}'],
        ),
        (MTP, "--speculative-config", ['{"method":"mtp","num_speculative_tokens":1}']),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype", ["fp8"]),
        ({"attention_backend": "FLASHINFER"}, "--attention-config", ['{"backend":"FLASHINFER"}']),
        (
            {"fuse_qk_norm_rope": True},
            "--compilation-config",
            ['{"pass_config":{"enable_qk_norm_rope_fusion":true}}'],
        ),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser", ["qwen3"]),
        (
            {"enable_thinking": True},
            "--default-chat-template-kwargs",
            ['{"enable_thinking":true}'],
        ),
    ],
)
def test_each_lever_is_a_flag_of_vllm(
    levers: dict[str, object], flag: str, words: list[str]
) -> None:
    assert after(build(variant(**levers), model(), GPU, PLACE), flag) == words


def test_a_multimodal_model_can_leave_its_tower_out() -> None:
    argv = build(variant(), model(language_model_only=True), GPU, PLACE).argv
    assert "--language-model-only" in argv


def test_mtp_is_dropped_when_the_checkpoint_has_no_head_for_it() -> None:
    usable, dropped = fit(variant(**MTP), model(has_mtp=False), GPU)
    assert usable.speculative_method is None
    assert [str(item) for item in dropped] == [
        "dropped SPECULATIVE_METHOD (model m): the checkpoint has no mtp.* weights",
        "dropped NUM_SPECULATIVE_TOKENS (model m): the checkpoint has no mtp.* weights",
    ]


COUNTS = Counts(Path("/counts/m.json"), least=300)
COUNTED = replace(model(), counts=COUNTS, vocab_size=16384)
SLICED = Packed("f", "raw", 1, world=2)


@pytest.mark.parametrize(("own", "said"), [(None, "8192"), (4096, "4096")])
def test_a_draft_vocabulary_goes_to_the_plugin_in_the_models_own_size(
    own: int | None, said: str
) -> None:
    served = replace(COUNTED, draft_vocab_size=own)
    asked = variant(**MTP, draft_vocab_size=8192)
    command = build(asked, served, GPU, PLACE)
    assert command.env["PREHEAT_DRAFT_VOCAB_SIZE"] == said
    assert command.env["PREHEAT_DRAFT_COUNTS"] == "/counts/m.json"
    assert command.draft_vocab_size == int(said)
    without = build(variant(**MTP), served, GPU, PLACE)
    assert command.argv == without.argv
    assert command.env.keys() - without.env.keys() == {
        "PREHEAT_DRAFT_VOCAB_SIZE",
        "PREHEAT_DRAFT_COUNTS",
    }
    assert not command.dropped


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        (replace(COUNTED, counts=None), "no counts of its tokens"),
        (replace(COUNTED, vocab_size=8192), "its vocabulary has 8192 tokens, and 8192 are asked"),
        (replace(COUNTED, blob=SLICED), "its head is sliced over 2 ranks"),
        (replace(COUNTED, has_mtp=False), "the checkpoint has no mtp.* weights"),
        (replace(COUNTED, counts=replace(COUNTS, misfit="why")), "why"),
        (
            replace(COUNTED, draft_vocab_size=256),
            "300 of its tokens always stay, and 256 are asked for",
        ),
    ],
)
def test_a_draft_vocabulary_is_dropped_where_there_can_be_none(served: Model, reason: str) -> None:
    command = build(variant(**MTP, draft_vocab_size=8192), served, GPU, PLACE)
    (item,) = [one for one in command.dropped if one.lever == "DRAFT_VOCAB_SIZE"]
    assert (item.by, item.reason.startswith(reason)) == ("model m", True)
    assert "PREHEAT_DRAFT_VOCAB_SIZE" not in command.env
    assert command.draft_vocab_size is None


def test_a_head_that_was_never_made_is_dropped_and_the_drafts_stay() -> None:
    asked = variant(**MTP, mtp_head="redistilled")
    usable, dropped = fit(asked, model(), GPU)
    assert (usable.speculative_method, usable.mtp_head) == ("mtp", None)
    assert [str(one) for one in dropped] == [
        "dropped MTP_HEAD (model m): weights/heads/ holds none for it"
    ]
    assert fit(asked, replace(model(), redistilled_head=True), GPU) == (asked, ())


def test_thoughts_are_dropped_of_a_model_that_knows_none() -> None:
    asked = variant(reasoning_parser="qwen3", enable_thinking=True, thinking_token_budget=8)
    usable, dropped = fit(asked, replace(model(), thinks=False), GPU)
    assert (usable.reasoning_parser, usable.enable_thinking) == (None, None)
    assert [item.lever for item in dropped] == [
        "REASONING_PARSER",
        "ENABLE_THINKING",
        "THINKING_TOKEN_BUDGET",
    ]
    assert fit(asked, model(), GPU)[1] == ()
    assert fit(variant(), replace(model(has_mtp=False), thinks=False), GPU)[1] == ()
    (item,) = fit(variant(reasoning_parser="qwen3"), replace(model(), thinks=False), GPU)[1]
    assert item.lever == "REASONING_PARSER"


def test_capture_sizes_are_dropped_where_no_graphs_are_captured() -> None:
    usable, dropped = fit(
        variant(cudagraph_capture_sizes=(1,)), model(), unable(CPU, no_cuda_graphs="no graphs")
    )
    assert usable.cudagraph_capture_sizes is None
    (item,) = dropped
    assert (item.lever, item.by) == ("CUDAGRAPH_CAPTURE_SIZES", "target cpu")
    assert item.reason == "no graphs"


@pytest.mark.parametrize(
    ("levers", "has_mtp", "kept"),
    [(MTP, True, False), (MTP, False, True), ({}, True, True)],
    ids=["drafting", "drafter dropped", "no drafter"],
)
def test_prefix_caching_is_dropped_only_while_mtp_really_drafts(
    levers: dict[str, object], has_mtp: bool, kept: bool
) -> None:
    target = unable(GPU, no_prefix_caching_with_mtp="not with MTP")
    usable, dropped = fit(variant(**levers), model(has_mtp=has_mtp), target)
    assert usable.enable_prefix_caching is kept
    assert ("ENABLE_PREFIX_CACHING" in {item.lever for item in dropped}) is not kept


@pytest.mark.parametrize(
    ("levers", "why"),
    [
        ({"attention_backend": "FLASHINFER"}, {"no_attention_backend": "one only"}),
        ({"fuse_qk_norm_rope": True}, {"no_fuse_qk_norm_rope": "no such pass"}),
    ],
)
def test_what_a_target_has_no_kernels_for_is_dropped(
    levers: dict[str, object], why: dict[str, str]
) -> None:
    usable, dropped = fit(variant(**levers), model(), unable(CPU, **why))
    (lever,) = levers
    assert getattr(usable, lever) is None
    assert [(item.lever, item.reason) for item in dropped] == [(lever.upper(), *why.values())]


def test_more_drafts_than_a_target_bears_are_refused_and_not_quietly_fewer() -> None:
    target = unable(GPU, max_speculative_tokens=4, max_speculative_tokens_why="it crashes")
    asked = variant(speculative_method="mtp", num_speculative_tokens=5)
    with pytest.raises(ConfigError, match=r"NUM_SPECULATIVE_TOKENS=5, .* bears 4: it crashes"):
        fit(asked, model(), target)
    assert fit(asked, model(has_mtp=False), target)[0].num_speculative_tokens is None


def test_a_lever_that_is_not_on_is_not_dropped() -> None:
    target = unable(GPU, no_cuda_graphs="why", no_prefix_caching_with_mtp="why")
    assert fit(variant(enable_prefix_caching=False, **MTP), model(), target)[1] == ()


def test_what_is_dropped_leaves_the_variant_itself_alone() -> None:
    asked = variant(cudagraph_capture_sizes=(1,))
    build(asked, model(), unable(CPU, no_cuda_graphs="why"), PLACE)
    assert asked.cudagraph_capture_sizes == (1,)


def test_every_cache_lies_below_the_root_of_the_variant() -> None:
    env = build(variant(), model(), GPU, PLACE).env
    for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert env[name].startswith("/cache/v/")
    assert "PYTHONPATH" not in env


def test_a_cpu_target_patches_early_and_preloads_from_the_environments_own_prefix() -> None:
    env = build(variant(), model(), unable(CPU, preload="lib/libiomp5.so"), PLACE).env
    assert env["LD_PRELOAD"] == "/env/lib/libiomp5.so"
    assert (Path(env["PYTHONPATH"]) / "sitecustomize.py").is_file()


def test_a_size_of_the_kv_cache_is_a_flag_in_bytes() -> None:
    target = CPU.model_copy(update={"kv_cache_mib": 2})
    assert after(build(variant(), model(), target, PLACE), "--kv-cache-memory-bytes") == ["2097152"]


def test_a_target_that_forks_has_a_zygote_with_a_socket_of_its_own() -> None:
    command = build(variant(), model(), CPU, PLACE)
    assert command.zygote[:3] == ("/env/bin/python", "-m", "serve.plugin.zygote")
    assert Path(command.zygote[-1]).parent == command.socket.parent != Path(command.zygote[-1])
    assert build(variant(), model(), unable(CPU, no_fork="why"), PLACE).zygote == ()


def test_the_engine_inherits_only_what_cannot_change_its_caches() -> None:
    command = Command(("x",), {"TZ": "ours", "VLLM_A": "ours"}, ())
    environ = {
        "HOME": "/home",
        "TZ": "theirs",
        "VLLM_A": "theirs",
        "VLLM_B": "theirs",
        "TORCH_X": "theirs",
        "PYTHONPATH": "theirs",
    }
    assert engine_environment(command, environ) == {"HOME": "/home", "TZ": "ours", "VLLM_A": "ours"}


def test_equal_input_gives_an_equal_command() -> None:
    asked = variant(cudagraph_capture_sizes=(2, 4), repetition_penalty=1.1, **MTP)
    assert build(asked, model(), GPU, PLACE) == build(asked, model(), GPU, PLACE)


def test_json_flags_are_json() -> None:
    command = build(variant(repetition_penalty=1.1, **MTP), model(), GPU, PLACE)
    for flag in ("--speculative-config", "--override-generation-config"):
        assert json.loads(after(command, flag)[0])


def test_a_model_answers_to_its_name_alone_and_with_its_variant() -> None:
    assert served_names(model(), variant()) == ("m", "m:v")
