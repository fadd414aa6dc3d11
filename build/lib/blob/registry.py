"""Which codecs there are, by the names that manifests and recipes call them.

A codec is imported when it is first asked for: each brings numba, which takes a second, and a raw
blob needs none.
"""

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from blob.codecs import ByteCodec, RowCodec
from blob.errors import BlobError
from blob.names import CODECS


def codec_of(name: str, params: Mapping[str, int], where: str) -> "RowCodec | ByteCodec":
    """The codec called ``name``, with its parameters.

    :raises BlobError: there is none, or it does not take them; ``where`` is who asks.
    """
    if name not in CODECS:
        raise BlobError(f"{where}: unknown codec {name!r:.40}; known: {', '.join(CODECS)}")
    kind = getattr(import_module(f"blob.codecs.{name}"), CODECS[name])
    known = {field.name for field in fields(kind)}
    if params.keys() != known:
        said, takes = sorted(params), sorted(known)
        raise BlobError(f"{where}: codec {name} takes the parameters {takes}, got {said}")
    try:
        made: RowCodec | ByteCodec = kind(**params)
    except ValueError as error:
        raise BlobError(f"{where}: codec {name}: {error}") from error
    return made


def params_of(codec: Any) -> dict[str, int]:
    """The parameters of ``codec``, as ``codec_of`` takes them."""
    return {field.name: getattr(codec, field.name) for field in fields(codec)}
