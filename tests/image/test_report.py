"""Layers by name, as both builders write them."""

import pytest

from bake.image.report import LONGEST, Layer, readable, table

DIGEST = "0a" * 32


@pytest.mark.parametrize(
    ("created_by", "said"),
    [
        ("", "the base"),
        (f"/bin/sh -c #(nop) COPY dir:{DIGEST} in /opt/venv ", "COPY /opt/venv"),
        (f"/bin/sh -c #(nop)  COPY multi:{DIGEST} in /build/ ", "COPY /build/"),
        ("/bin/sh -c apt-get update  &&   apt-get install", "apt-get update && apt-get install"),
        ("|2 MODEL=tiny TARGET=cpu /bin/sh -c make all", "make all"),
        ("RUN /bin/sh -c make all # buildkit", "RUN /bin/sh -c make all"),
        ("COPY serve /build/serve # buildkit", "COPY serve /build/serve"),
    ],
)
def test_an_instruction_reads_as_in_a_dockerfile(created_by, said):
    assert readable(created_by) == said


def test_a_long_one_is_cut():
    said = readable("x" * 200)
    assert (len(said), said[-1]) == (LONGEST, "…")


def test_the_table_ends_with_the_total():
    lines = table([Layer("the base", 1_500_000), Layer("COPY a", 500_000)]).splitlines()
    assert lines == ["       1.5 MB  the base", "       0.5 MB  COPY a", "       2.0 MB  total"]
