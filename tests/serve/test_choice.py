import pytest

from serve.choice import NAMED, Choice, choose_model
from serve.target import Target
from serve.variant import Variant

PLAIN = Variant.model_validate({"NAME": "plain", "SUMMARY": "s"})
DRAFTS = Variant.model_validate(
    {
        "NAME": "drafts",
        "SUMMARY": "s",
        "SPECULATIVE_METHOD": "mtp",
        "NUM_SPECULATIVE_TOKENS": "4",
    }
)
BOTH = {"NAME": "cpu", "DEVICE": "cpu", "DEFAULT_MODEL": "real"}
TWO = Target.model_validate({**BOTH, "DEFAULT_MODEL_WITH_MTP": "head"})
ONE = Target.model_validate(BOTH)


@pytest.mark.parametrize(
    ("variants", "model", "why"),
    [
        ([PLAIN], "real", "default of target cpu for variants without an MTP head"),
        ([DRAFTS], "head", "default of target cpu for variants with an MTP head"),
        ([PLAIN, PLAIN], "real", "default of target cpu for variants without an MTP head"),
        (
            [PLAIN, DRAFTS],
            "head",
            "default of target cpu for variants with an MTP head, of which there are: drafts",
        ),
    ],
)
def test_a_target_has_a_model_for_drafts_and_one_for_all_else(variants, model, why):
    assert choose_model(None, TWO, variants) == Choice(model, why)


@pytest.mark.parametrize("variants", [[PLAIN], [DRAFTS], [PLAIN, DRAFTS]])
def test_a_target_of_one_model_takes_it_for_all(variants):
    assert choose_model(None, ONE, variants) == Choice("real", "default of target cpu")


@pytest.mark.parametrize("target", [ONE, TWO])
@pytest.mark.parametrize("variant", [PLAIN, DRAFTS])
def test_one_that_is_named_goes_before_all(target, variant):
    assert choose_model("mine", target, [variant]) == Choice("mine", NAMED)


def test_nothing_named_is_not_a_name():
    assert choose_model("", ONE, [PLAIN]).model == "real"
