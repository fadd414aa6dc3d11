"""What the builder says, followed: the image's id, or the step that failed in words."""

from pathlib import Path

import pytest

from bake.errors import BakeError
from bake.image.build import Recipe, build
from bake.progress import Plain

RECIPE = Recipe("baker", {"BASE_IMAGE": "mine:1"}, {}, "host")


class Said:
    """An engine that has said all of it already."""

    def __init__(self, *chunks: dict[str, str]) -> None:
        self.api = self
        self.chunks = chunks
        self.asked: dict[str, object] = {}

    def build(self, **asked):
        self.asked = asked
        return iter(self.chunks)


def told(log: Path, *chunks: dict[str, str]) -> str:
    return build(Said(*chunks), RECIPE, log, Plain())  # type: ignore[arg-type]


def failed(log: Path, *chunks: dict[str, str]) -> BakeError:
    with pytest.raises(BakeError) as caught:
        told(log, *chunks)
    return caught.value


def test_the_id_is_told_and_no_log_is_left(tmp_path):
    log = tmp_path / "log"
    said = ({"stream": "Step 1/1 : FROM x\n"}, {"stream": "Successfully built 0123abc\n"})
    assert told(log, *said) == "0123abc"
    assert not log.exists()


def test_a_command_that_fails_is_named_once_with_its_last_words(tmp_path):
    error = failed(
        tmp_path / "log",
        {"stream": "Step 3/9 : RUN make all\n"},
        {"stream": "\x1b[91mno such target\n\x1b[0m"},
        {"error": "The command '/bin/sh -c make all' returned a non-zero code: 2"},
    )
    assert error.what.splitlines() == [
        "building baker: exit status 2",
        "  in step 3/9: RUN make all",
        "  | Step 3/9 : RUN make all",
        "  | no such target",
    ]
    assert str(tmp_path / "log") in error.hint
    assert "no such target" in (tmp_path / "log").read_text()
    assert "\x1b" not in (tmp_path / "log").read_text()


def test_a_base_that_is_not_found_is_named_by_its_name(tmp_path):
    error = failed(
        tmp_path / "log",
        {"stream": "Step 2/9 : FROM ${BASE_IMAGE} AS system\n"},
        {"error": "pull access denied"},
    )
    assert "  in step 2/9: FROM mine:1 AS system" in error.what.splitlines()


def test_an_error_before_any_step_and_one_without_an_id(tmp_path):
    assert "in no step yet" in failed(tmp_path / "log", {"error": "no Dockerfile"}).what
    error = failed(tmp_path / "log", {"stream": "Step 1/1 : FROM x\n"})
    assert error.what == "building baker: the engine named no image"
    assert str(tmp_path / "log") in error.hint
