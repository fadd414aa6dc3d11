from pathlib import Path

import pytest

from serve.errors import ConfigError
from serve.variant import Variant, known_variants, load_variant


def write(experiments: Path, name: str, **pairs: str) -> None:
    (experiments / name).mkdir(parents=True)
    lines = [f"{key}={value}\n" for key, value in {"SUMMARY": "s", **pairs}.items()]
    (experiments / name / "config.env").write_text("".join(lines))


def loaded(experiments: Path, name: str = "v", **pairs: str) -> Variant:
    write(experiments, name, **pairs)
    return load_variant(name, experiments)


def test_a_variant_without_levers_leaves_all_as_vllm_ships_it(tmp_path: Path) -> None:
    levers = loaded(tmp_path).model_dump(exclude={"name", "summary"}, exclude_defaults=True)
    assert levers == {}


def test_an_unknown_variant_names_the_nearest_and_lists_all(tmp_path: Path) -> None:
    write(tmp_path, "seq8")
    write(tmp_path, "baseline")
    (tmp_path / "no-config").mkdir()
    assert known_variants(tmp_path) == ["baseline", "seq8"]
    with pytest.raises(ConfigError) as refused:
        load_variant("seq9", tmp_path)
    assert str(refused.value) == (
        f"no variant 'seq9' in {tmp_path} (did you mean seq8?)\nhint: there are: baseline, seq8"
    )


@pytest.mark.parametrize("name", ["../seq8", "/etc", ".", "", "seq8/"])
def test_a_name_is_a_folder_of_experiments_and_no_path(tmp_path: Path, name: str) -> None:
    write(tmp_path / "experiments", "other")
    write(tmp_path, "seq8")
    with pytest.raises(ConfigError, match="no variant"):
        load_variant(name, tmp_path / "experiments")


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ({"SPECULATIVE_METHOD": "mtp"}, "go together"),
        ({"NUM_SPECULATIVE_TOKENS": "4"}, "go together"),
        (
            {"SPECULATIVE_METHOD": "mtp", "NUM_SPECULATIVE_TOKENS": "8"},
            "NUM_SPECULATIVE_TOKENS='8'",
        ),
        ({"CUDAGRAPH_CAPTURE_SIZES": "2,1"}, "must ascend without repeats"),
        ({"CUDAGRAPH_CAPTURE_SIZES": "1,1"}, "must ascend without repeats"),
        ({"CUDAGRAPH_CAPTURE_SIZES": "0"}, "greater than or equal to 1"),
        (
            {
                "SPECULATIVE_METHOD": "mtp",
                "NUM_SPECULATIVE_TOKENS": "4",
                "CUDAGRAPH_CAPTURE_SIZES": "5,8",
            },
            "[8] are no multiples of K+1 = 5",
        ),
        ({"REPETITION_PENALTY": "0"}, "greater than 0"),
        ({"WEIGHTS": "w4a16"}, "WEIGHTS='w4a16'"),
        ({"WEIGHTS": "awq-w4a16", "WEIGHTS_GROUP_SIZE": "48"}, "WEIGHTS_GROUP_SIZE is one of (32"),
        ({"WEIGHTS_TARGETS": "linear"}, "WEIGHTS_TARGETS asks for WEIGHTS"),
        ({"WEIGHTS_GROUP_SIZE": "64"}, "WEIGHTS_GROUP_SIZE asks for WEIGHTS or LM_HEAD"),
        ({"MTP_HEAD": "redistilled"}, "MTP_HEAD asks for SPECULATIVE_METHOD=mtp"),
        ({"DRAFT_VOCAB_SIZE": "4096"}, "DRAFT_VOCAB_SIZE asks for SPECULATIVE_METHOD=mtp"),
        ({"VOCAB_SIZE": "256"}, "greater than or equal to 512"),
        ({"VOCAB_SIZE": "8200"}, "multiple of 64"),
        ({"ATTENTION_BACKEND": "flash infer"}, "ATTENTION_BACKEND='flash infer'"),
        ({"THINKING_TOKEN_BUDGET": "64"}, "THINKING_TOKEN_BUDGET asks for REASONING_PARSER"),
    ],
)
def test_levers_that_do_not_fit_are_refused(
    tmp_path: Path, pairs: dict[str, str], why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, **pairs)
    assert str(refused.value).startswith(str(tmp_path / "v" / "config.env"))
    assert why in str(refused.value)


def test_equal_levers_have_equal_digests_whatever_the_name(tmp_path: Path) -> None:
    one = loaded(tmp_path, "one", MAX_NUM_SEQS="8", SUMMARY="a")
    same = loaded(tmp_path, "same", MAX_NUM_SEQS="8", SUMMARY="b")
    other = loaded(tmp_path, "other", MAX_NUM_SEQS="9")
    assert one.digest == same.digest
    assert one.digest != other.digest


def test_the_digest_of_no_levers_is_pinned(tmp_path: Path) -> None:
    # Measurements carry it: a change of the vocabulary shows here first.
    assert len(loaded(tmp_path).digest) == 64
