"""What transformers is told beforehand is what it would have found, and it copes without."""

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

# Prints everything that transformers' laziness is made of, and takes something out of it.
SHOW = """
import hashlib, json, transformers
from transformers import models
from transformers.utils import import_utils
def flat(lazy):
    return sorted((str(k), sorted(map(str, v))) for k, v in lazy._import_structure.items())
shown = [flat(transformers), flat(models), sorted(import_utils.PACKAGE_DISTRIBUTION_MAPPING)]
print(import_utils.define_import_structure.__module__, transformers.AutoTokenizer.__name__)
print(hashlib.sha256(json.dumps(shown).encode()).hexdigest())
"""


def said(before: str) -> list[str]:
    done = python(before + SHOW, EARLY)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_with_the_answers_transformers_knows_exactly_what_it_knows_without() -> None:
    asked = said("from serve.plugin import foresight; foresight.begin()")
    alone = said("")
    assert (asked[0], alone[0]) == ("serve.plugin.foresight", "transformers.utils.import_utils")
    assert asked[1:] == alone[1:]


def test_without_answers_it_looks_for_itself() -> None:
    failing = (
        "from serve.plugin import foresight\n"
        "def _look(): raise MemoryError\n"
        "foresight._look = _look; foresight.begin()"
    )
    assert said(failing) == said("")
