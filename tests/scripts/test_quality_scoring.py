"""What is asked of a server for one text, and what is made of its answers."""

from collections.abc import Iterator

import pytest

from scripts.quality import scoring
from scripts.quality.divergence import NotAligned
from scripts.quality.scoring import continued, scored
from scripts.served import Failed
from tests.scripts.json_server import JsonServer, json_server

# "ab" and "é": one token of two bytes each, in the letters that byte-level BPE writes bytes as.
TEXT = "abé"
WORDS = {"tokens": [5, 6], "token_strs": ["ab", "Ã©"]}
LOGPROBS = [None, {"6": {"logprob": -3.0, "rank": 40}, "9": {"logprob": -0.1, "rank": 1}}]


@pytest.fixture
def answers() -> dict[str, tuple[int, object]]:
    return {
        "/tokenize": (200, WORDS),
        "/v1/completions": (200, {"choices": [{"text": " on", "prompt_logprobs": LOGPROBS}]}),
    }


@pytest.fixture
def server(answers) -> Iterator[JsonServer]:
    with json_server(answers.__getitem__) as listening:
        yield listening


def test_a_text_is_cut_by_the_server_and_sent_back_as_ids(server):
    (told,) = scored(server.url, "m", TEXT)
    assert (told.token, told.start, told.size, told.first, told.listed) == (6, 2, 2, 9, False)
    assert told.nll == 3.0
    (_, first), (_, second) = server.asked
    assert (first["prompt"], first["add_special_tokens"]) == (TEXT, False)
    assert (second["prompt"], second["prompt_logprobs"]) == ([5, 6], scoring.TOP)


def test_tokens_that_are_not_the_texts_bytes_are_refused(server, answers):
    answers["/tokenize"] = (200, {"tokens": [5], "token_strs": ["▁ab"]})
    with pytest.raises(NotAligned, match="not pieces of bytes"):
        scored(server.url, "m", TEXT)


def test_a_continuation_is_drawn_from_the_whole_distribution(server):
    assert continued(server.url, "m", "go", 7, 3) == " on"
    ((_, body),) = server.asked
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1, 1, -1, 0)
    assert (body["repetition_penalty"], body["seed"], body["max_tokens"]) == (1, 3, 7)


def test_an_error_is_told_in_the_servers_words(server, answers):
    answers["/tokenize"] = (400, {"error": {"message": "token 7 is not kept"}})
    with pytest.raises(Failed, match=r"POST /tokenize: status 400: .*token 7 is not kept"):
        scored(server.url, "m", TEXT)


def test_a_server_that_is_gone_is_told_in_words():
    with json_server(lambda _: (200, {})) as gone:
        url = gone.url
    with pytest.raises(Failed, match="POST /tokenize: no answer: "):
        scored(url, "m", TEXT)
