"""What ships in ``experiments/``: each file parses, and each command is the one that is pinned."""

from pathlib import Path

import pytest

from serve.choice import choose_model
from serve.command import Command, Place, build, fit
from serve.model import Model, find_model, known_models
from serve.settings import REPOSITORY
from serve.target import known_targets, load_target
from serve.variant import known_variants, load_variant

EXPERIMENTS = REPOSITORY / "experiments"
VARIANTS = known_variants(EXPERIMENTS)
TARGETS = known_targets(EXPERIMENTS)
MODELS = known_models(EXPERIMENTS)
PLACE = Place(Path("/env/bin/python"), Path("/cache/v"), Path("/run/engine.sock"))
MTP = '{"method":"mtp","num_speculative_tokens":4}'
PENALTY = '{"repetition_penalty":1.05}'


def checkpoint(name: str) -> Model:
    """As ``load_model`` would find it; the weights themselves need not be here."""
    source = find_model(name, EXPERIMENTS)
    only_text = source.language_model_only
    return Model(name, Path("/weights") / name, "Qwen3_5", 1, True, only_text)


def command(variant: str, model: str, target: str) -> Command:
    return build(
        load_variant(variant, EXPERIMENTS),
        checkpoint(model),
        load_target(target, EXPERIMENTS),
        PLACE,
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_every_model_has_a_command_on_every_target(
    variant: str, model: str, target: str
) -> None:
    built = command(variant, model, target)
    assert built.argv[-2:] == ("--uds", "/run/engine.sock")
    assert all(item.reason for item in built.dropped)


@pytest.mark.parametrize("target", TARGETS)
def test_the_default_model_of_every_target_exists(target: str) -> None:
    loaded = load_target(target, EXPERIMENTS)
    assert {loaded.default_model, loaded.default_model_with_mtp or MODELS[0]} <= {*MODELS}


@pytest.mark.parametrize(
    ("variant", "target", "model"),
    [
        ("baseline", "cpu", "smollm2-135m"),
        ("seq8", "cpu", "smollm2-135m"),
        ("seq8-best", "cpu", "tiny"),
        ("baseline", "a10g", "qwen3.5-4b"),
        ("seq8-best", "a10g", "qwen3.5-4b"),
    ],
)
def test_the_model_of_each_variant_that_names_none(variant: str, target: str, model: str) -> None:
    loaded = load_variant(variant, EXPERIMENTS)
    assert choose_model(None, load_target(target, EXPERIMENTS), [loaded]).model == model


@pytest.mark.parametrize("model", MODELS)
def test_a_model_lies_inside_the_repository_and_says_how_to_get_it_if_it_is_not_shipped(
    model: str,
) -> None:
    source = find_model(model, EXPERIMENTS)
    assert source.path.is_relative_to(REPOSITORY / "weights")
    assert source.get or model == "tiny"


def test_each_gpu_is_described_by_one_target_only() -> None:
    names = [name for t in TARGETS for name in load_target(t, EXPERIMENTS).device_names]
    assert len(names) == len(set(names))


def test_no_two_variants_have_the_same_levers() -> None:
    digests = {load_variant(name, EXPERIMENTS).digest for name in VARIANTS}
    assert len(digests) == len(VARIANTS)


def dropped(variant: str, target: str) -> dict[str, str]:
    _, items = fit(
        load_variant(variant, EXPERIMENTS), checkpoint("tiny"), load_target(target, EXPERIMENTS)
    )
    return {item.lever: item.reason for item in items}


def test_seq8_best_loses_capture_sizes_and_prefix_caching_on_a_cpu() -> None:
    assert dropped("seq8-best", "cpu") == {
        "CUDAGRAPH_CAPTURE_SIZES": "the CPU backend captures no graphs",
        "ENABLE_PREFIX_CACHING": "the engine dies at the first request: the hybrid cache's copy "
        "kernel is Triton only",
    }


def test_seq8_best_loses_only_prefix_caching_on_an_a10g() -> None:
    assert dropped("seq8-best", "a10g") == {
        "ENABLE_PREFIX_CACHING": "wrong output on GatedDeltaNet hybrids is still open "
        "(vllm#43650) and unproven on this card"
    }


def test_the_baseline_loses_nothing_anywhere() -> None:
    assert [dropped("baseline", target) for target in TARGETS] == [{}] * len(TARGETS)


THINKING = (
    *("--reasoning-parser", "qwen3"),
    *("--default-chat-template-kwargs", '{"enable_thinking":true}'),
)
CAPTURE_BEST = ("--cudagraph-capture-sizes", "5", "10", "20", "40")
LEVERS = {
    ("baseline", "cpu"): (),
    ("baseline", "a10g"): (),
    ("seq8", "cpu"): ("--max-num-seqs", "8"),
    ("seq8", "a10g"): (
        *("--max-num-seqs", "8"),
        *("--cudagraph-capture-sizes", "1", "2", "4", "8"),
    ),
    ("awq", "cpu"): (),
    ("awq", "a10g"): (),
    ("seq8-w4lm", "cpu"): ("--max-num-seqs", "8"),
    ("seq8-v64k", "cpu"): ("--max-num-seqs", "8"),
    ("seq8-fp8kv", "cpu"): ("--max-num-seqs", "8", "--kv-cache-dtype", "fp8"),
    ("seq8-fp8kv", "a10g"): (
        *("--max-num-seqs", "8"),
        *("--cudagraph-capture-sizes", "1", "2", "4", "8"),
        *("--kv-cache-dtype", "fp8"),
        *("--attention-config", '{"backend":"FLASHINFER"}'),
    ),
    ("seq8-shortcot", "cpu"): ("--max-num-seqs", "8", *THINKING),
    ("seq8-stacked", "cpu"): (
        *("--max-num-seqs", "8"),
        "--no-enable-prefix-caching",
        *("--speculative-config", MTP),
        *THINKING,
    ),
    ("seq8-stacked", "a10g"): (
        *("--max-num-seqs", "8"),
        *CAPTURE_BEST,
        "--no-enable-prefix-caching",
        *("--speculative-config", MTP),
        *("--compilation-config", '{"pass_config":{"enable_qk_norm_rope_fusion":true}}'),
        *THINKING,
    ),
    ("seq8-best", "cpu"): (
        *("--max-num-seqs", "8"),
        "--no-enable-prefix-caching",
        *("--speculative-config", MTP),
        *("--override-generation-config", PENALTY),
    ),
    ("seq8-drafts", "cpu"): (
        *("--max-num-seqs", "8"),
        "--no-enable-prefix-caching",
        *("--speculative-config", MTP),
    ),
    ("seq8-best", "a10g"): (
        *("--max-num-seqs", "8"),
        *CAPTURE_BEST,
        "--no-enable-prefix-caching",
        *("--speculative-config", MTP),
        *("--override-generation-config", PENALTY),
    ),
}


@pytest.mark.parametrize(("variant", "target"), LEVERS)
def test_the_argv_of_each_is_pinned(variant: str, target: str) -> None:
    # Pinned because vLLM's compile-cache key hashes it: a change here makes every bake stale.
    model = "tiny" if target == "cpu" else "qwen3.5-4b"
    assert command(variant, model, target).argv == (
        *("/env/bin/python", "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", f"/weights/{model}"),
        *("--served-model-name", model, f"{model}:{variant}"),
        *(("--language-model-only",) if model == "qwen3.5-4b" else ()),
        *(("--kv-cache-memory-bytes", "268435456") if target == "cpu" else ()),
        *("--dtype", "bfloat16"),
        *LEVERS[variant, target],
        *("--uds", "/run/engine.sock"),
    )


def test_the_environment_of_the_cpu_target_is_pinned() -> None:
    env = dict(command("seq8-best", "tiny", "cpu").env)
    assert env.pop("PYTHONPATH") == str(REPOSITORY / "serve" / "plugin" / "early")
    assert env == {
        "VLLM_CACHE_ROOT": "/cache/v/vllm",
        "TORCHINDUCTOR_CACHE_DIR": "/cache/v/inductor",
        "TRITON_CACHE_DIR": "/cache/v/triton",
        "FLASHINFER_WORKSPACE_BASE": "/cache/v/flashinfer",
        "VLLM_PLUGINS": "preheat",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "LD_PRELOAD": "/env/lib/libiomp5.so",
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "KMP_AFFINITY": "none",
        "VLLM_MQ_MAX_CHUNK_BYTES_MB": "2",
    }
