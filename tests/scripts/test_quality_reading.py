import json

import pytest

from scripts.quality.reading import batches, read
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"


def test_texts_that_are_alike_in_length_are_read_together_each_once():
    lengths = [at * 7 % 50 for at in range(50)]
    told = list(batches(lengths))
    assert sorted(at for places in told for at in places) == list(range(50))
    assert [len(places) for places in told] == [16, 16, 16, 2]
    assert max(lengths[at] for at in told[0]) <= min(lengths[at] for at in told[1])


@pytest.mark.torch
def test_a_text_reads_the_same_alone_and_among_longer_ones():
    texts = [
        json.loads(row)["text"] for row in (TINY / "heldout.jsonl").read_text().split("\n") if row
    ][:200:25]
    together = read(TINY, texts, 1)
    alone = read(TINY, texts[:2], 1)
    assert together[1][:2] == alone[1]
    assert together[0][:2] == pytest.approx(alone[0], abs=1e-2)
