import inspect
import json

import pytest

from serve import errors
from serve.errors import ConfigError, EngineFailed, PreflightError, ServeError, envelope, nearest


def test_a_message_ends_with_the_next_step_when_there_is_one() -> None:
    assert str(ConfigError("what", "next")) == "what\nhint: next"
    assert str(ConfigError("what")) == "what"


def test_a_dead_engine_shows_its_own_words_between_message_and_hint() -> None:
    error = EngineFailed("it died", ["one", "two"], "next")
    assert str(error) == "it died\n  engine | one\n  engine | two\nhint: next"


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError, 2), (PreflightError, 1), (EngineFailed, 1)]
)
def test_each_error_has_its_exit_status(error: type[ServeError], status: int) -> None:
    assert error("x").exit_code == status


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    leaves = [
        name
        for name, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, ServeError)
    ]
    assert all(name in (errors.__doc__ or "") for name in leaves)


def test_the_nearest_name_is_offered_only_when_it_is_near() -> None:
    assert nearest("seq8-bets", ["seq8-best", "baseline"]) == " (did you mean seq8-best?)"
    assert nearest("zzz", ["seq8-best"]) == ""
    assert nearest("a", []) == ""


def test_the_envelope_has_openais_shape_and_says_who_speaks() -> None:
    body = json.loads(envelope('quote " and é', kind="server_error", code="c"))
    assert body["error"] == {
        "message": 'quote " and é',
        "type": "server_error",
        "code": "c",
        "param": None,
        "src": "gateway",
    }


def test_an_error_event_is_one_event_whatever_the_message_holds() -> None:
    event = errors.sse_error(errors.Refusal(502, "c", "a\n\ndata: b"))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
