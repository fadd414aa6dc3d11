"""Files of JSON objects, one a line: the form of prompts and texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class BadLine(ValueError):
    """A line that is no JSON object, or a file that is no text; says where."""


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line that is not empty: where it stands, for a person, and its object.

    Lines end at a line feed alone: texts hold other characters that Python would cut at (U+2028).

    :raises BadLine: a line is none. :raises OSError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadLine(f"{path}: not UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}: line {number}"
            yield where, _object(line, where)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise BadLine(f"{where}: not JSON: {error}") from error
    if not isinstance(item, dict):
        raise BadLine(f"{where}: expected a JSON object, got {type(item).__name__}")
    return item
