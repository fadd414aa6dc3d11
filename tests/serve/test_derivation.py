from pathlib import Path

import pytest

from serve.derivation import Derivation, derivation, derived
from serve.errors import ConfigError
from serve.model import ModelSource, find_model, known_models, load_model
from serve.settings import REPOSITORY
from serve.variant import Variant
from tests.serve.checkpoints import checkpoint
from tests.serve.test_origin import record

SOURCE = ModelSource.model_validate(
    {"NAME": "m", "PATH": Path("/weights/m"), "REDISTILLED_HEAD": True}
)
OWN_SIZE = SOURCE.model_copy(update={"pruned_vocab_size": 8192})


def variant(**levers: object) -> Variant:
    upper = {name.upper(): value for name, value in levers.items()}
    return Variant.model_validate({"NAME": "v", "SUMMARY": "s", **upper})


MTP = {"speculative_method": "mtp", "num_speculative_tokens": 4}


@pytest.mark.parametrize(
    ("levers", "slug"),
    [
        ({"weights": "awq-w4a16"}, "awq-w4a16-mlp_g32"),
        (
            {"weights": "rtn-w4a16", "weights_targets": "linear", "weights_group_size": 128},
            "rtn-w4a16-linear_g128",
        ),
        ({"lm_head": "w4a16"}, "lmhead-w4a16_g32"),
        ({"lm_head": "w4a16", "weights_group_size": 64}, "lmhead-w4a16_g64"),
        ({"vocab_size": 65536}, "v65536"),
        ({"mtp_head": "redistilled", **MTP}, "mtp-redistilled"),
        (
            {
                "mtp_head": "redistilled",
                **MTP,
                "vocab_size": 65536,
                "weights": "awq-w4a16",
                "lm_head": "w4a16",
            },
            "mtp-redistilled_v65536_awq-w4a16-mlp_lmhead-w4a16_g32",
        ),
    ],
)
def test_a_folder_is_named_after_every_step(levers: dict[str, object], slug: str) -> None:
    made = derivation(variant(**levers), SOURCE)
    assert made is not None
    assert made.slug == slug


@pytest.mark.parametrize("levers", [{}, MTP, {"max_num_seqs": 8, "kv_cache_dtype": "fp8"}])
def test_levers_that_change_no_weights_leave_the_model_where_it_is(
    levers: dict[str, object],
) -> None:
    assert derivation(variant(**levers), SOURCE) is None
    assert derived(variant(**levers), SOURCE, Path("/root")) is SOURCE


def test_a_model_prunes_to_its_own_size_where_it_has_one() -> None:
    made = derivation(variant(vocab_size=65536), OWN_SIZE)
    assert made == Derivation(vocab_size=8192)
    assert derivation(variant(), OWN_SIZE) is None


def test_what_is_served_keeps_its_name_and_says_how_it_is_made() -> None:
    served = derived(variant(lm_head="w4a16"), SOURCE, Path("/root"))
    assert (served.name, served.path) == ("m", Path("/root/m/lmhead-w4a16_g32"))
    assert served.get == "preheat bake derive v --model m"


HEAD = {"lm_head": "w4a16"}


def test_models_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / where / "m", "a") for where in "ab"]
    given = [find_model(str(path), tmp_path) for path in paths]
    folders = {derived(variant(**HEAD), one, Path("/root")).path for one in [*given, SOURCE]}
    assert len(folders) == 3
    assert {one.name for one in given} == {"m"}
    again = find_model(str(paths[0] / ".." / "m"), tmp_path)
    assert derived(variant(**HEAD), again, Path("/root")).path in folders


def test_a_model_by_its_path_is_made_by_its_path(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a b" / "m", "a")
    served = derived(variant(**HEAD), find_model(str(path), tmp_path), tmp_path)
    assert served.get == f"preheat bake derive v --model '{path}'"


def test_what_was_made_of_another_checkpoint_is_not_served(tmp_path: Path) -> None:
    source = SOURCE.model_copy(update={"path": checkpoint(tmp_path / "m", "a")})
    made = derived(variant(**HEAD), source, tmp_path / "root").path
    record(checkpoint(made, "a"), source.path)
    served = load_model(derived(variant(**HEAD), source, tmp_path / "root"))
    assert served.derived
    assert served.derived.slug == "lmhead-w4a16_g32"
    (source.path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"made of another checkpoint .*config\.json") as refused:
        derived(variant(**HEAD), source, tmp_path / "root")
    assert refused.value.hint == "preheat bake derive v --model m"


def test_a_model_that_no_head_was_made_for_keeps_its_own(tmp_path: Path) -> None:
    plain = SOURCE.model_copy(update={"redistilled_head": False})
    head, both = ({"mtp_head": "redistilled", **MTP, **more} for more in ({}, HEAD))
    assert derived(variant(**head), plain, tmp_path) is plain
    assert derived(variant(**both), plain, tmp_path).path.name == "lmhead-w4a16_g32"
    assert derived(variant(**head), SOURCE, tmp_path).path.name == "mtp-redistilled"


def test_a_model_says_that_it_has_a_head_where_one_lies() -> None:
    names = known_models(REPOSITORY / "experiments")
    said = {n for n in names if find_model(n, REPOSITORY / "experiments").redistilled_head}
    assert said == {path.stem for path in (REPOSITORY / "weights" / "heads").glob("*.safetensors")}
