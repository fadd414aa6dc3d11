from pathlib import Path

import pytest

from serve.errors import ConfigError
from serve.settings import BARE, PREFIX, Settings, read_settings, reference, variable


def test_nothing_set_is_the_default_of_everything() -> None:
    settings = read_settings({})
    assert (settings.variant, settings.model, settings.target) == ("baseline", None, None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.check_memory


def test_only_our_own_variables_are_read() -> None:
    assert read_settings({"HOME": "/", "HOST": "x", "DRAIN_SECONDS": "9"}) == read_settings({})


def test_values_are_read_and_an_empty_one_counts_as_not_set() -> None:
    settings = read_settings(
        {
            "VARIANT": "seq8",
            "PORT": "",
            "PREHEAT_CACHE_ROOT": "/cache",
            "PREHEAT_CHECK_MEMORY": "false",
            "PREHEAT_DRAIN_SECONDS": "0",
        }
    )
    assert (settings.variant, settings.port) == ("seq8", 8000)
    assert (settings.cache_root, settings.check_memory) == (Path("/cache"), False)
    assert settings.drain_seconds == 0


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PORT", "65536", "less than or equal to 65535"),
        ("PORT", "-1", "greater than or equal to 0"),
        ("PREHEAT_START_SECONDS", "0", "greater than 0"),
        ("PREHEAT_STOP_SECONDS", "inf", "finite"),
        ("PREHEAT_DRAIN_SECONDS", "0.5", "integer"),
        ("PREHEAT_LOG_FORMAT", "xml", "'text' or 'json'"),
        ("PREHEAT_CHECK_MEMORY", "maybe", "boolean"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings({name: value})
    assert str(refused.value).startswith(f"environment: {name}={value!r}: ")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [("PREHEAT_DRAIN_SECOND", "PREHEAT_DRAIN_SECONDS"), ("PREHEAT_VARIANT", "VARIANT")],
)
def test_an_unknown_variable_with_our_prefix_is_refused(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key {name} .did you mean {near}"):
        read_settings({name: "1"})


def test_the_reference_tells_every_variable_once_with_a_sentence() -> None:
    entries = reference()
    assert [entry.name for entry in entries] == [variable(name) for name in Settings.model_fields]
    for entry in entries:
        assert entry.name in BARE or entry.name.startswith(PREFIX)
        assert entry.sentence.endswith(".")
        assert entry.type


def test_the_defaults_of_the_reference_are_accepted_values() -> None:
    shown = {entry.name: entry.default for entry in reference() if entry.type != "path"}
    assert read_settings(shown) == read_settings({})
